"""What the encoder says about whole photos: its class token and the mean of its patches, without any decoder.

Features are kept on disk under the weights' digest and the photos' places, part by part: the next question
about the same model and photos waits for nothing, and an interrupted run goes on. They are float32 on every device,
a GPU too, so that it does not matter which one made them; by estimate ViT-B then costs it half a millisecond a photo,
less than a core takes to decode one.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, resize
from tqdm import tqdm

from model.checkpoints import store
from model.checkpoints.files import replacing
from model.checkpoints.registry import shipped
from model.checkpoints.shapes import Given
from model.errors import CheckpointError
from model.evaluate import state
from model.network import MAE, sees_images
from model.pretrain.data import Photos, in_order, places

#: The two features of a photo, in the order of every tensor ``[N, 2, D]`` of them: class token, mean of the patches.
POOLS = ("cls", "mean")
#: A photo to judge is scaled to side / CROP_SHARE and its centre taken: 256 and 224 pixels, as in the paper.
CROP_SHARE = 0.875
#: Photos whose features lie in one file.
PART = 1024
#: Photos in one pass.
_BATCH = 32
#: Shares of red, green and blue in a grey, as Pillow takes them.
_BRIGHTNESS = (0.299, 0.587, 0.114)


class Encoder(nn.Module):
    """The encoder of an MAE alone, on whole images.

    Args:
        network: Its decoder is discarded.
        name: Of the model.
        digest: Of its weight file.
    """

    def __init__(self, network: MAE, name: str = "", digest: str = "") -> None:
        super().__init__()
        for kind in (network._modules, network._parameters, network._buffers):
            for part in [name for name in kind if not sees_images(name)]:
                delattr(network, part)
        self.network = network
        self.config = network.config
        self.name = name
        self.digest = digest

    def forward(self, images: Tensor) -> Tensor:
        """Tokens ``[B, 1+L, D]`` after the last norm, class token first, of ``images [B, 3, H, W]`` in 0..1."""
        return self.network.encode(self.network.normalise(images))

    def weights(self) -> dict[str, Tensor]:
        """The encoder's tensors under their public names, positions included: what timm's ViT has too."""
        return {
            name: value for name, value in self.network.state_dict().items() if not name.startswith("image_")
        }


def load_encoder(path: Path | str | None = None, given: Given | None = None) -> Encoder:
    """The encoder of any file that holds one, with or without a decoder beside it; a grey one sees colours.

    Args:
        path: A file or folder of any known layout, or a name of the registry; None for the shipped ``mini``.
        given: What it may leave out.

    Raises:
        CheckpointError: It cannot be read, is not on this machine, is a classifier without the encoder's last norm,
            or looks at channels that photos do not have.
    """
    file = store.read_encoder(Path(path) if path else shipped(), given)
    config, house = file.config, file.tensors
    if config.channels == 1:
        # Brightness is a sum of the colours, so that the patch projection can take it of them itself.
        projection = "patch_embed.proj.weight"
        house |= {projection: house[projection].float() * torch.tensor(_BRIGHTNESS).view(1, 3, 1, 1)}
        config = replace(config, channels=3, pixel_mean=config.image_mean * 3, pixel_std=config.image_std * 3)
    if config.channels != 3:
        raise CheckpointError(
            f"{file.name} looks at {config.channels} channels, but photos have 3 colours.",
            code="channels",
            hint="Use an encoder of colours or of grey.",
        )
    network = store.unfilled(config)  # and its decoder stays so
    own = network.state_dict()
    for key, value in house.items():
        if sees_images(key) and key in own:
            own[key].copy_(value)
    return Encoder(network.eval(), file.name, file.digest)


def whole(photo: Tensor, side: int) -> Tensor:
    """A photo ``[3, H, W] uint8`` as it is judged: short side to ``side / CROP_SHARE``, the centre square."""
    scaled = resize(photo, [round(side / CROP_SHARE)], InterpolationMode.BICUBIC, antialias=True)
    return center_crop(scaled, [side, side])


def pooled(tokens: Tensor) -> Tensor:
    """Both of ``POOLS``, ``[B, 2, D]``, of tokens ``[B, 1+L, D]``."""
    return torch.stack([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


@torch.inference_mode()
def extract(
    encoder: Encoder, photos: Photos, cache: Path, *, device: torch.device, workers: int = 1
) -> Tensor:
    """Features of all photos, ``[N, 2, D] float32`` by ``POOLS``, from ``cache`` as far as they are there.

    Args:
        encoder: On any device; it is moved.
        photos: Whose.
        cache: Folder of the parts.
        device: Where to compute.
        workers: Decoding threads.

    Raises:
        DataError: A photo cannot be decoded; named.
    """
    encoder = encoder.to(device).eval()
    parts: list[Tensor] = []
    cache.mkdir(parents=True, exist_ok=True)
    with (
        ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool,
        tqdm(total=len(photos), desc="features", unit="photo") as bar,
    ):
        for start in range(0, len(photos), PART):
            numbers = range(start, min(start + PART, len(photos)))
            file = cache / f"{_key(encoder, photos, numbers)}.safetensors"
            if file.is_file():
                parts.append(load_file(file)["features"])
                bar.update(len(numbers))
                continue
            made = []
            for images in _batches(photos, numbers, encoder.config.image_size, pool):
                made.append(pooled(encoder(images.to(device).float() / 255)).cpu())
                bar.update(len(images))
            parts.append(torch.cat(made))
            with replacing(file) as part:
                save_file({"features": parts[-1]}, part)
    return torch.cat(parts)


def _batches(photos: Photos, numbers: range, side: int, pool: ThreadPoolExecutor) -> Iterator[Tensor]:
    """Photos as judged, ``[B, 3, S, S] uint8``, decoded ahead by the pool."""
    loaded = in_order(lambda number: whole(photos.decode(number), side), numbers, pool, 2 * _BATCH)
    while batch := list(islice(loaded, _BATCH)):
        yield torch.stack(batch)


def _key(encoder: Encoder, photos: Photos, numbers: range) -> str:
    """What decides a part's features, as a file name."""
    which = places(photos.entries[numbers.start : numbers.stop])
    return state.digest(encoder.digest, encoder.config.to_dict(), CROP_SHARE, "float32", which)
