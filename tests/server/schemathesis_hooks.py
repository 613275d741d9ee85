"""Pictures for requests that schemathesis makes: of random bytes nearly none would be one."""

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def _picture(kind: str, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.radial_gradient("L").resize(size).convert("RGB").save(file, kind)
    return file.getvalue()


schemathesis.openapi.format(
    "binary",
    st.sampled_from(
        [_picture("PNG", (64, 48)), _picture("JPEG", (40, 90)), _picture("WEBP", (8, 8)), b"no picture"]
    ),
)
