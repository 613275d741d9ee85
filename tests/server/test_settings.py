import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from model.devices import usable_cpus
from server.__main__ import main
from server.settings import Settings, prepare_environment, unknown_variables


def test_the_environment_sets_every_knob_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_PORT", "8000")
    monkeypatch.setenv("UNMASK_CORS_ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("UNMASK_MODELS", "")
    settings = Settings()
    assert settings.port == 8000
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.models == ()


def test_the_defaults_listen_locally_and_open_nothing() -> None:
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.cors_origins == ()
    assert settings.max_bytes == 16 * 1024 * 1024


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("MAX_BYTES", "0"),
        ("ROOT_PATH", "x/"),
        ("LOG_LEVEL", "x"),
        ("API_KEYS", "a secret"),
        ("API_KEYS", ","),
        ("API_KEYS", " , "),
        ("API_KEYS", " "),
        ("MODELS", ","),
        ("CLIENT_RATE", "many"),
        ("CLIENT_RATE", "0/minute"),
        ("CLIENT_RATE", "10/0 minutes"),
        ("TRUSTED_PROXIES", "10.0.0.1,*"),
        ("DEADLINE_S", "inf"),
        ("CLIENT_RATE", "10 per minute; 5/second"),
        ("TRUSTED_PROXIES", "10.0.0.1,nginx"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "10.0.0.1/8"),
        ("CORS_ORIGINS", "example.com"),
        ("CORS_ORIGINS", "https://a.example,https://b.example/"),
        ("CORS_ORIGINS", "https://A.example"),
    ],
)
def test_a_wrong_value_is_refused_at_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"UNMASK_{name}", value)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert refused.value.errors()[0]["loc"][0] == name.lower()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRUSTED_PROXIES", "10.0.0.1, 10.1.0.0/16,fd00::/8"),
        ("TRUSTED_PROXIES", ""),
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "http://localhost:3000, https://[::1]:8443"),
        ("CLIENT_RATE", "10 per minute"),
        ("CLIENT_RATE", "100 per 10 minutes"),
        ("API_KEYS", ""),
    ],
)
def test_what_an_operator_may_write_is_taken(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"UNMASK_{name}", value)
    Settings()


def test_at_most_so_many_replicas_are_no_fewer_than_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_MAX_REPLICAS", "1")
    with pytest.raises(ValidationError, match="UNMASK_MIN_REPLICAS=1"):
        Settings()  # two at least, unless one says otherwise
    monkeypatch.setenv("UNMASK_MIN_REPLICAS", "1")
    assert Settings().max_replicas == 1


def test_a_key_s_digest_may_be_in_capitals_and_what_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_API_KEYS", "AB" * 32)
    assert Settings().api_keys == ("ab" * 32,)
    monkeypatch.setenv("UNMASK_API_KEYS", "ab" * 32 + "  -")  # all that sha256sum prints
    with pytest.raises(ValidationError, match="64 hexadecimal digits"):
        Settings()
    monkeypatch.setenv("UNMASK_API_KEYS", hashlib.sha256(b"").hexdigest())  # of a variable that was not set
    with pytest.raises(ValidationError, match="an empty key, which everybody has"):
        Settings()


def test_with_a_client_rate_nobody_may_write_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_CLIENT_RATE", "3/minute")
    monkeypatch.setenv("UNMASK_TRUSTED_PROXIES", "10.1.2.3")
    assert Settings().trusted_proxies == "10.1.2.3"
    for everybody in ("0.0.0.0/0", "10.1.2.3, ::/0", "*"):
        monkeypatch.setenv("UNMASK_TRUSTED_PROXIES", everybody)
        with pytest.raises(ValidationError, match="name the proxies' addresses"):
            Settings()
    monkeypatch.setenv("UNMASK_CLIENT_RATE", "")
    assert Settings().trusted_proxies == "*"


def test_a_proxy_is_believed_by_the_address_that_an_ipv6_socket_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNMASK_TRUSTED_PROXIES", "10.1.2.3, 10.2.0.0/16, fd00::/8")
    believed = Settings().believed
    assert set(believed[:3]) == {"10.1.2.3", "10.2.0.0/16", "fd00::/8"}
    assert set(believed[3:]) == {"::ffff:10.1.2.3/128", "::ffff:10.2.0.0/112"}
    monkeypatch.setenv("UNMASK_TRUSTED_PROXIES", "*")
    assert Settings().believed == ["*"]


def test_help_tells_every_setting_in_a_narrow_window(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["server", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert max(map(len, told.splitlines())) <= 80
    words = " ".join(told.split())
    for name, field in Settings.model_fields.items():
        assert f" UNMASK_{name.upper()} " in words
        assert str(field.description) in words
    assert "UNMASK_PORT (7860) Port to listen on" in words


@pytest.mark.parametrize("argument", ["--prot=80", "clster", "--po=80"])
def test_an_unknown_argument_is_refused_by_name(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["server", argument])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert argument in capsys.readouterr().err


def test_a_port_on_the_command_line_stands_above_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNMASK_PORT", "8000")
    monkeypatch.setattr(sys, "argv", ["server", "--port", "70000"])
    with pytest.raises(SystemExit):
        main()
    assert "UNMASK_PORT: Input should be less than or equal to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("run", ["/nowhere", __file__, "/" + "x" * 300])
def test_what_is_no_folder_of_a_run_is_told_at_start(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["server"])
    monkeypatch.setenv("UNMASK_RUN", run)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith(run[:200] + " is no folder that can be read")


def test_a_mistyped_variable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UNMASK_PRT", "UNMASK_PORT"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == ["UNMASK_PRT"]


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
)
def test_the_container_quota_bounds_the_threads(
    files: dict[str, str], cpus: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    unbounded = usable_cpus(tmp_path / "nowhere")
    assert usable_cpus(tmp_path) == (unbounded if cpus is None else cpus)


def test_libraries_are_told_to_stay_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR", "HF_HUB_OFFLINE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "before")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("SPACE_ID", "somebody/unmask")
    prepare_environment(Settings(threads=3), tmp_path)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "SPACE_ID" not in os.environ


def test_libraries_are_quiet_before_models_are_looked_up(tmp_path: Path, root: Path) -> None:
    (file := tmp_path / "mine.safetensors").write_bytes(b"x")
    code = (
        "from server.__main__ import _read_settings; _read_settings({})\n"
        "from huggingface_hub import constants; assert constants.HF_HUB_OFFLINE"
    )
    environment = {**os.environ, "UNMASK_MODELS": str(file), "HF_HUB_OFFLINE": ""}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True)
