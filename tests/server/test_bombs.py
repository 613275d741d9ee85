"""Small files that would take a gigabyte each to decode: refused by their header, many at once, without memory."""

import asyncio
import base64
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import photo
from tests.server.test_process import start

AT_ONCE = 32
MIB = 1024 * 1024
# 9400 pixels square, one colour, as Pillow writes them.
WEBP = "c-jl{baRtpU|<M$bqWXzu<+pnvh}w=(dA?p5d6#U;_{yv0D`^<W&"
AVIF = (
    "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^nKdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`@fjhaj"
    "KT~I?5sexMrLMS8eFXukdw*;<t3IG7&_<Y<b&<X$}A`<0Mg!>1<Cn9S|qc$AQfVr$_@x-5Gcs3$OMTnb8v6~DW1eKL+3_$9*"
    "~f5a(+%xUUE(a&}3c)wg#Y(cxFK^%uhgvu`n_<vjAPio12nYBE-POE&n}b`=q;zn51|)j6U-UpF7^(8hQW!|3~K!FfjO@Kc#"
    "tmN@QblLG1p0Q#vxTw=BH#{Nf5VAGU-Rn>D+>f1TF8<mwtVzGET%%xm_pVCyz3njEoZ$<+U;C){2+ePF7zskW-k*tpC_@(OF"
    "<lLLd>xL%@+Q`bs4@ZeswWc)|f=US0>M9;nc$Z@i2Q4_c7OesNzKGt=QmhXAC;J4Aq-HV)~9v)q;zGvUeZ=Ywy?s{oA<GyED"
    "@ZJ{BGuI+^IDGL4|8_%G_qu<Dz1qQ#{BmcXa6I=p9M^HAvGW0&K!wDW(Xby4`;i#-ld0&t(1_ic9Dgc%L>yuzCw6Bs{r8K?o"
    "5&QvlM<VF|B!>}bjyD==4!unKArvg>R-osDeeL;4rZOq3@`Uu!H4<Pljb%$PW^shJOA7XqmClhQG+Kjsku0K?n{WBmon%3);"
    "(&OUG8!QKj)vlk>yj-=&s`Xljm`7BV$ST1~ULsR>>>"
)


def unpack(text: str) -> bytes:
    return zlib.decompress(base64.b85decode(text))


def png_bomb(side: int = 13376) -> bytes:
    """A PNG whose rows are all zero."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    rows = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    packed = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def memory(pid: int, name: str) -> int:
    """Bytes of a process: `VmRSS` now, `VmHWM` at most since the last reset."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


async def send_all(address: str, images: list[bytes]) -> list[int]:
    async with httpx.AsyncClient(base_url=address, timeout=120) as client:

        async def send(image: bytes) -> int:
            files: dict[str, Any] = {"image": ("a", image)}
            while (answer := await client.post("/reconstruct", files=files)).status_code == 503:
                await asyncio.sleep(0.1)
            return answer.status_code

        return list(await asyncio.gather(*map(send, images)))


@pytest.mark.slow
def test_bombs_at_once_cost_little_memory(tmp_path: Path, proved_weights: Path) -> None:
    bombs = [unpack(WEBP), unpack(AVIF), png_bomb()]
    assert len(bombs[0]) == 34
    with start(tmp_path, UNMASK_MODELS=proved_weights, UNMASK_DEADLINE_S=120) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip().rpartition(" ")[2]
            assert asyncio.run(send_all(address, [photo()] * 4)) == [200] * 4
            idle = memory(process.pid, "VmRSS")
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak counts from here
            statuses = asyncio.run(send_all(address, [bombs[number % 3] for number in range(AT_ONCE)]))
            assert statuses == [413] * AT_ONCE
            assert memory(process.pid, "VmHWM") <= idle + 512 * MIB
            assert asyncio.run(send_all(address, [photo()])) == [200]
        finally:
            process.terminate()
            process.communicate(timeout=120)
