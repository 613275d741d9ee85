"""Every setting of the service: its name, unit, default and reason.

The only module of the server that reads or writes the environment. A variable is `UNMASK_` plus the field's
name in capitals (`UNMASK_PORT=8000`); an unknown `UNMASK_` variable is an error, because it is nearly
always a typo.
"""

import hashlib
import ipaddress
import os
import re
import textwrap
from pathlib import Path
from typing import Annotated, Literal

import limits
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.devices import usable_cpus

PREFIX = "UNMASK_"
MIB = 1024 * 1024


# As a browser writes it: of a page's address no more than this, in small letters.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


def _digest(value: str) -> str:
    if not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError(
            "write the 64 hexadecimal digits that sha256sum prints of the key, and nothing behind them"
        )
    if value.lower() == hashlib.sha256().hexdigest():
        raise ValueError("this is the hash of nothing: sha256sum was given an empty key, which everybody has")
    return value.lower()


Sha256 = Annotated[str, AfterValidator(_digest)]


class Settings(BaseSettings):
    """What an operator may change, checked once at start."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        env_ignore_empty=True,  # as `${NAME:-}` in a compose file leaves it: the default
        allow_inf_nan=False,
    )

    host: str = Field(
        default="127.0.0.1", description="Address to listen on. Local by default: opening it is a decision."
    )
    port: int = Field(default=7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    root_path: str = Field(
        default="",
        pattern=r"^(/[A-Za-z0-9._~-]+)*$",
        description="Path prefix behind a proxy, such as /unmask.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins of other web pages that may call the API, comma separated. None by default.",
    )
    frame_ancestors: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("'self'",), description="Who may show the page in a frame (CSP sources, comma separated)."
    )

    api_keys: Annotated[tuple[Sha256, ...], NoDecode] = Field(
        default=(),
        description="SHA-256 digests (hex, comma separated) of keys; with any, page and API need one. Empty: none.",
    )

    client_rate: str = Field(
        default="",
        description="Requests with pictures that one client may send, such as 120/minute; a batch counts as many as it "
        "makes. A client is a key, else an address (see TRUSTED_PROXIES), of IPv6 the first 64 bits. Empty: no limit.",
    )
    trusted_proxies: str = Field(
        default="127.0.0.1",
        description="Addresses and networks whose X-Forwarded-For and -Proto are believed, comma separated.",
    )

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description=(
            "Models to serve, comma separated: PATH, NAME=PATH or a name of `python -m model weights list`. The first "
            "is the default and loaded at start, the others when first asked for. Empty: all shipped ones, and what "
            "was pulled or added here and has a decoder."
        ),
    )
    model_bytes: int = Field(
        default=4096 * MIB,
        ge=0,
        description="Bytes of weights in memory (4 per parameter); above, the least recently used model goes.",
    )
    run: Path | None = Field(
        default=None,
        description="Folder of a training run to watch at /v1/models/NAME/training; NAME is the folder's.",
    )
    device: str | None = Field(
        default=None, description="cpu, cuda or cuda:N; empty uses a GPU when there is one."
    )
    engine: Literal["auto", "openvino", "torch"] = Field(
        default="auto",
        description="What computes on a CPU; auto uses OpenVINO where it meets torch's answers, else torch.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Numbers the network computes in; auto is float32 on a CPU and bfloat16 on a GPU that has it. "
        "Stated in every reconstruction.",
    )
    threads: int = Field(
        default_factory=usable_cpus,
        ge=1,
        description="CPU threads of the network; affinity and cgroup decide.",
    )
    decode_threads: int = Field(
        default_factory=lambda: min(4, usable_cpus()),
        ge=1,
        le=64,
        description="Threads that decode pictures, and as many that encode; at most 40 million pixels at a time.",
    )
    max_batch: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Pictures in one network call; empty: 4 on a CPU, 32 on a GPU.",
    )

    min_replicas: int = Field(
        default=2,
        ge=1,
        description="Model replicas of a cluster when all is quiet (python -m server cluster).",
    )
    max_replicas: int | None = Field(
        default=None,
        ge=1,
        description="Model replicas of a cluster at most, each with THREADS cores or a GPU; empty: never more.",
    )

    max_bytes: int = Field(default=16 * MIB, ge=1024, description="Bytes of one uploaded picture.")
    batch_items: int = Field(
        default=64,
        ge=1,
        le=1024,
        description="Reconstructions of one batch request: pictures times variants.",
    )
    batch_bytes: int = Field(
        default=32 * MIB,
        ge=1024,
        description="Bytes of a batch request with all its pictures, of its answer in JSON, and of a picture at full "
        "size; up to four such requests at a time.",
    )
    held_bytes: int = Field(
        default=256 * MIB,
        ge=1024,
        description="Bytes of all requests together, arriving, waiting, in progress or sent; further ones are refused.",
    )
    body_s: float = Field(default=60.0, gt=0, description="Seconds in which a request must have arrived.")
    max_waiting: int = Field(default=64, ge=1, description="Requests in progress or waiting.")
    max_queue_s: float = Field(
        default=2.0, gt=0, description="Predicted wait in seconds above which requests are refused."
    )
    deadline_s: float = Field(
        default=10.0, gt=0, description="Seconds after which an admitted request is given up."
    )
    graceful_s: int = Field(
        default=5,
        ge=1,
        description="Seconds that running requests get after SIGTERM, then they are refused (503). The process is out "
        "some three later: with five within the ten that `docker stop` waits, though a request may take DEADLINE_S.",
    )

    page: bool = Field(default=True, description="Serve the page at / beside the API.")
    metrics: bool = Field(
        default=True, description="Serve counters for Prometheus at /metrics; close the path to strangers."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )

    @field_validator("api_keys", "cors_origins", "frame_ancestors", "models", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        """Lists are written `a,b` in the environment, which is easier to type right than JSON.

        One of commas and blanks alone was meant as something: as no keys it would open the service in silence.
        """
        if not isinstance(value, str):
            return value
        parts = _listed(value)
        if value and not parts:
            raise ValueError(f"{value!r} lists nothing; write entries with commas between, or leave it empty")
        return parts

    @field_validator("client_rate")
    @classmethod
    def _one_rate(cls, value: str) -> str:
        if not value:
            return value
        try:
            count = len(limits.parse_many(value))
        except ValueError:
            count = 0
        if count != 1 or not all(map(int, re.findall("[0-9]+", value))):  # no requests, or in no time
            raise ValueError(
                f"{value!r} is not one rate; write a number and a time, both at least 1, such as 1200/minute"
            )
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"no browser sends {origin!r} as an origin; write scheme://host or scheme://host:port in small "
                    "letters, without a path: https://photos.example"
                )
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _addresses(cls, value: str) -> str:
        """A name would be believed in silence and match nobody."""
        if value == "*":
            return value
        for proxy in _listed(value):
            if proxy == "*":
                raise ValueError(f"{value!r} has more than *; write * alone, or addresses")
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(
                    f"{error}; write addresses or networks, such as 10.1.2.3 or 10.1.2.0/24: names are not looked up"
                ) from error
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _no_client_names_itself(cls, value: str, info: ValidationInfo) -> str:
        """Where everybody is believed, a client writes its own address and is somebody else every time."""
        if not info.data.get("client_rate") or info.data.get("api_keys"):
            return value
        for proxy in _listed(value):
            if proxy == "*" or ipaddress.ip_network(proxy).prefixlen == 0:
                raise ValueError(f"with a client rate, name the proxies' addresses instead of {proxy}")
        return value

    @field_validator("max_replicas")
    @classmethod
    def _at_least_as_many(cls, value: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get("min_replicas", 1)
        if value is not None and value < least:
            raise ValueError(
                f"{value} is below the {least} there are at least; set {PREFIX}MIN_REPLICAS={value} too"
            )
        return value

    @property
    def believed(self) -> list[str]:
        """The trusted proxies as connections show them: to an IPv6 address IPv4 ones come as ::ffff:a.b.c.d."""
        proxies = _listed(self.trusted_proxies)
        mapped = [
            f"::ffff:{network.network_address}/{96 + network.prefixlen}"
            for network in map(ipaddress.ip_network, set(proxies) - {"*"})
            if network.version == 4
        ]
        return [*proxies, *mapped]

    @property
    def max_items(self) -> int:
        """Reconstructions of one batch request: no more than a client could ever be let in with."""
        if not self.client_rate:
            return self.batch_items
        return min(self.batch_items, limits.parse(self.client_rate).amount)

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a whole request with a picture: the picture, its drawing and the form around them."""
        return self.max_bytes + MIB


def _listed(value: str) -> tuple[str, ...]:
    """The entries of a text with commas between."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def described() -> str:
    """Every variable with its default and meaning, in lines for a terminal of 80 characters."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        text = ",".join(default) if isinstance(default, tuple) else str("" if default is None else default)
        lines.append(f"  {PREFIX}{name.upper()}" + (f" ({text.lower()})" if text else ""))
        lines += textwrap.wrap(field.description or "", 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def unknown_variables() -> list[str]:
    """Names that start like ours but are not ours, sorted."""
    names = os.environ  # noqa: TID251 - settings own the environment
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)


def prepare_environment(settings: Settings, temporary: Path) -> None:
    """Tell libraries that only listen to the environment; call before torch or gradio are imported.

    Args:
        settings: The service's settings.
        temporary: A private folder for uploads that Gradio keeps on disk.
    """
    environment = os.environ  # noqa: TID251 - settings own the environment
    environment["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio compares with this very text
    environment["GRADIO_TEMP_DIR"] = str(temporary)
    environment["HF_HUB_OFFLINE"] = "1"  # nothing may be fetched behind the operator's back
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    environment.pop(
        "SPACE_ID", None
    )  # on Hugging Face Gradio's page would load fonts and scripts from elsewhere
    environment.setdefault("OMP_NUM_THREADS", str(settings.threads))
