"""The encoder under other tasks: instances by Mask R-CNN on a simple feature pyramid, and a segmentation head.

Source: arXiv 2111.06377, section 5; the pyramid as in arXiv 2203.16527: all levels from the encoder's last map.
At a size anyone can run: photos in a square of one side, flipped half the time, no window attention, plain AdamW
with layer-wise decay and a bound on the gradient. Positions are the encoder's, resized, and do not learn.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import box_iou, masks_to_boxes
from tqdm import tqdm

from model import presets
from model.errors import DataError, RecipeError
from model.evaluate import bounds, pages, plots, state
from model.evaluate.augment import DRAWS, Samples, seeded
from model.evaluate.coco import Finds, Scene, Scenes, average_precision, mask_overlaps
from model.evaluate.features import Encoder
from model.pretrain.data import places, refuse_shared

#: Class of a pixel outside the photo: neither learned nor counted.
_PADDING = -1
#: Norm of the gradient above which it is shortened.
_CLIP = 1.0
#: Of the curve of the training loss, at most twice as many: every state holds them.
_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a head is trained.

    Attributes:
        task: ``detect`` (boxes and masks of things) or ``segment`` (a class for every pixel).
        steps: In all.
        batch_size: Photos per step.
        side: Of the square a photo is laid into, pixels; None for the model's own.
        lr: Top rate.
        layer_decay: Rate of an encoder's layer over that of the next one.
        weight_decay: AdamW's, of matrices; vectors and class token have none.
        width: Channels of the pyramid and of the heads.
        proposals: Region proposals per photo on which the box head trains, for ``detect``.
        seed: Of order, flips, proposals and first weights.
    """

    task: Literal["detect", "segment"] = "detect"
    steps: int = 1000
    batch_size: int = 8
    side: int | None = None
    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    width: int = 128
    proposals: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject numbers with which a figure would mean nothing."""
        bounds.check(**vars(self))


def load_settings(name_or_path: str | None, changes: dict[str, Any]) -> Settings:
    """Settings of a recipe, with what was given on top.

    Args:
        name_or_path: A TOML file, or the name of one in ``model/evaluate/recipes``; None for the defaults.
        changes: Fields to replace; ``None`` means unchanged.

    Raises:
        RecipeError: There is no such recipe, or it cannot be read.
    """
    values = presets.read(name_or_path, "model.evaluate", "recipes", "recipe") if name_or_path else {}
    keys = sorted(entry.name for entry in fields(Settings))
    if unknown := sorted(values.keys() - set(keys)):
        raise _bad(f"{unknown[0]} is not a known key; known are {', '.join(keys)}")
    settings = Settings(**values | {key: value for key, value in changes.items() if value is not None})
    if settings.task not in ("detect", "segment"):
        raise _bad(f"task is {settings.task!r}; it must be detect or segment")
    return settings


def _bad(message: str) -> RecipeError:
    return RecipeError(
        f"recipe: {message}.", code="recipe", hint="See model/evaluate/recipes for examples.", field="recipe"
    )


class Pyramid(nn.Module):
    """Maps at 1/4 to 1/64 of a picture (for patches of 16), all from the encoder's last one.

    As in torchvision's and ViTDet's: the coarsest is the one before, every second place, for proposals alone.
    """

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.network = encoder.network
        self.out_channels = width
        inner = encoder.config.width

        def up(times: int) -> list[nn.Module]:
            layers: list[nn.Module] = []
            for _ in range(times):
                layers += [nn.ConvTranspose2d(inner, inner, 2, stride=2), nn.GELU()]
            return layers

        self.levels = nn.ModuleList(
            nn.Sequential(
                *before,
                nn.Conv2d(inner, width, 1), nn.GroupNorm(1, width),
                nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(1, width),
            )
            for before in (up(2), up(1), [], [nn.MaxPool2d(2)])
        )  # fmt: skip

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps ``[B, W, h, w]`` by level, of normalised pictures in whole patches."""
        rows, columns = self.network.grid_of(image)
        tokens = self.network.encode(image)[:, 1:]
        last = tokens.transpose(1, 2).reshape(len(image), -1, rows, columns)
        maps = OrderedDict((str(number), level(last)) for number, level in enumerate(self.levels))
        maps["pool"] = nn.functional.max_pool2d(maps["3"], 1, 2)
        return maps


class Segmenter(nn.Module):
    """A class for every pixel, from the finest map of a pyramid."""

    def __init__(self, pyramid: Pyramid, classes: int) -> None:
        super().__init__()
        self.backbone = pyramid
        self.head = nn.Conv2d(pyramid.out_channels, classes + 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``[B, 1 + C, S, S]`` of pictures in 0..1."""
        finest = self.backbone(self.backbone.network.normalise(images))["0"]
        return nn.functional.interpolate(self.head(finest), size=images.shape[-2:], mode="bilinear")


def build(encoder: Encoder, classes: int, settings: Settings) -> nn.Module:
    """The encoder with a fresh head.

    Raises:
        RecipeError: The side is not in whole patches.
    """
    side = _side(encoder, settings)
    with seeded(settings.seed):
        pyramid = Pyramid(encoder, settings.width)
        if settings.task == "segment":
            return Segmenter(pyramid, classes)
        width = settings.width
        # 32 to 512 pixels at a side of 1024; never below two steps of the map, or things would fall between them.
        smallest = max(side // 32, encoder.config.patch_size // 2)
        sizes = tuple((smallest << level,) for level in range(5))
        mean, std = encoder.config.image_mean, encoder.config.image_std
        return MaskRCNN(
            pyramid, min_size=side, max_size=side, image_mean=list(mean), image_std=list(std),
            size_divisible=side, box_batch_size_per_image=settings.proposals,
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
            box_head=TwoMLPHead(width * 49, 4 * width), box_predictor=FastRCNNPredictor(4 * width, classes + 1),
            mask_head=MaskRCNNHeads(width, (width,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(width, width, classes + 1),
        )  # fmt: skip


def _side(encoder: Encoder, settings: Settings) -> int:
    side, patch_size = settings.side or encoder.config.image_size, encoder.config.patch_size
    if side % patch_size:
        raise RecipeError(
            f"side is {side}; it must be a multiple of {patch_size}, the model's patch.",
            code="settings",
            hint="Correct it on the command line or in the recipe.",
            field="side",
        )
    return side


def answer(
    encoder: Encoder, train: Scenes, test: Scenes, out: Path, settings: Settings, device: torch.device,
    save_every: int = 100,
) -> dict[str, Any]:  # fmt: skip
    """What ``evaluate`` says, from the folder where it was asked before.

    Raises:
        DataError: The folder holds the answer to another question.
    """
    return state.answered(
        out / f"{_name(encoder, settings)}.json",
        _asked(encoder, train, test, settings),
        lambda: evaluate(encoder, train, test, out, settings, device, save_every),
    )


def _name(encoder: Encoder, settings: Settings) -> str:
    return f"transfer-{settings.task}-{state.stem(encoder.name)}{state.of_seed(settings.seed)}"


def _asked(encoder: Encoder, train: Scenes, test: Scenes, settings: Settings) -> str:
    """Digest of what decides the answer."""
    photos = [[places(of.photos.entries), of.digest] for of in (train, test)]
    return state.digest(encoder.digest, encoder.config.to_dict(), photos, asdict(settings), DRAWS)


def evaluate(
    encoder: Encoder, train: Scenes, test: Scenes, out: Path, settings: Settings, device: torch.device,
    save_every: int = 100,
) -> dict[str, Any]:  # fmt: skip
    """Train the encoder with a fresh head on some scenes, judge it on others; the report goes to ``out``.

    Args:
        encoder: Trained or random.
        train: Training photos.
        test: Test photos; opened with the classes of ``train``.
        out: The folder.
        settings: How.
        device: Where.
        save_every: Steps between two states; the same call goes on from the last one.

    Raises:
        DataError: The two parts have other classes, a photo is in both or cannot be used, or the loss is not finite.
        RecipeError: The side is not in whole patches.

    Returns:
        JSON-ready: ``scores`` in percent (``box_ap``, ``box_ap50``, ``mask_ap``, ``mask_ap50``; or ``miou``), and the
        curve.
    """
    if test.classes != train.classes:
        raise DataError(
            "The test photos have other classes than the training photos, or in another order.",
            code="data-labels",
            hint="Open the test photos with the classes of the training photos: Scenes.open(folder, train.classes).",
            field="test",
        )
    refuse_shared(train.photos, test.photos)
    side = _side(encoder, settings)
    facts: dict[str, Any] = {
        "model": encoder.name,
        "digest": encoder.digest,
        "asked": _asked(encoder, train, test, settings),
        "train_photos": len(train),
        "test_photos": len(test),
    }
    for what, of in (("training", train), ("test", test)):
        tqdm.write(f"{what}: {of.told}.", file=sys.stderr)
    name = _name(encoder, settings)
    keep = state.Keeper(out / f"{name}.state", facts)
    if not keep.path.is_file():
        # After the last step it would all be lost: the state is that of a run with these photos.
        for number in tqdm(range(len(test)), desc="check", unit="photo"):
            test.scene(number, side)
    model = build(encoder, len(train.classes), settings).to(device)
    curve = _train(model, train, side, settings, device, keep, save_every)
    judged = _detected if settings.task == "detect" else _segmented
    scores = {key: round(value, 3) for key, value in judged(model, test, side, device).items()}
    facts = facts | {
        "question": settings.task,
        "settings": asdict(settings),
        "scores": scores,
        "curve": curve,
    }
    words = (
        f"{encoder.name}. Training: {train.told}. Test: {test.told}. {len(train.classes)} classes, "
        f"{settings.steps} steps of {settings.batch_size}, side {side}. Not the paper's setting."
    )
    steps, losses = ([line[key] for line in curve] for key in ("step", "loss"))
    plot = plots.lines("Training loss", "step", "loss", {"loss": (steps, losses)})
    pages.write(
        out, name, f"Transfer, {settings.task}: {encoder.name}", facts,
        [
            words,
            pages.Table(("score", "percent"), list(scores.items())),
            pages.Figure(f"{name}-curve", plot, "Loss"),
        ],
    )  # fmt: skip
    keep.forget()
    return facts


def _train(
    model: nn.Module, scenes: Scenes, side: int, settings: Settings, device: torch.device, keep: state.Keeper,
    save_every: int,
) -> list[dict[str, float]]:  # fmt: skip
    optimiser = torch.optim.AdamW(_groups(model, settings), lr=settings.lr)
    warmup = settings.steps // 20
    schedule = CosineLRScheduler(
        optimiser,
        t_initial=max(settings.steps - warmup, 2),
        warmup_t=warmup,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    every = max(settings.steps // _POINTS, 1)
    curve: list[dict[str, float]] = []
    first = 0
    if saved := keep.load():
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        curve, first = saved["curve"], saved["step"]
    model.train()
    samples = Samples(len(scenes), settings.batch_size, settings.seed)
    for step in tqdm(range(first, settings.steps), desc=settings.task, unit="step"):
        schedule.step_update(step)
        batch = [scenes.scene(number, side, flip=bool(key & 1)) for number, key in samples(step)]
        with seeded(settings.seed, step, device=device):  # Mask R-CNN samples its proposals
            loss: Any = _loss(model, batch, device)
        optimiser.zero_grad()
        value = float(loss.detach())
        state.refuse_not_finite(value, f"in step {step + 1}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimiser.step()
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            curve.append({"step": step + 1, "loss": round(value, 5)})
        if (step + 1) % save_every == 0:
            keep.save(
                {
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "curve": curve,
                    "step": step + 1,
                }
            )
    return curve


def _groups(model: nn.Module, settings: Settings) -> list[dict[str, Any]]:
    """Parameters by layer and decay: rates of the encoder's fall towards the input, the head has the full rate."""
    network: Any = model.backbone.network  # type: ignore[union-attr]
    depth = len(network.blocks)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("backbone.network.")
        layer = _layer_of(inner, depth) if inner != name else depth + 1
        decayed = parameter.ndim > 1 and inner != "cls_token"
        groups.setdefault((layer, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decayed else 0.0,
            "lr_scale": settings.layer_decay ** (depth + 1 - layer),
        }
        for (layer, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _layer_of(name: str, depth: int) -> int:
    """0 for the embedding, i + 1 for block i, depth + 1 for what comes after."""
    if name == "cls_token" or name.startswith("patch_embed."):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1


def _loss(model: nn.Module, batch: list[Scene], device: torch.device) -> Tensor:
    images = torch.stack([scene.image for scene in batch]).to(device)
    if isinstance(model, Segmenter):
        wanted = torch.stack([_semantic(scene) for scene in batch]).to(device)
        return nn.functional.cross_entropy(model(images), wanted, ignore_index=_PADDING)
    targets = [
        {
            "boxes": _boxes(scene.masks).to(device),
            "labels": scene.classes.to(device),
            "masks": scene.masks.to(device),
        }
        for scene in batch
    ]
    losses: dict[str, Tensor] = model(list(images), targets)
    return torch.stack(list(losses.values())).sum()


def _boxes(masks: Tensor) -> Tensor:
    """``[N, 4]``, also of no masks."""
    return masks_to_boxes(masks) if len(masks) else torch.zeros(0, 4)


def _semantic(scene: Scene) -> Tensor:
    """Class of every pixel ``[S, S] int64``, 0 where there is nothing; a later thing lies above an earlier one."""
    height, width = scene.size
    whole = torch.full(scene.image.shape[-2:], _PADDING)
    whole[:height, :width] = 0
    for class_, mask in zip(scene.classes.tolist(), scene.masks, strict=True):
        whole[:height, :width][mask[:height, :width] > 0] = class_
    return whole


@torch.inference_mode()
def _detected(model: nn.Module, test: Scenes, side: int, device: torch.device) -> dict[str, float]:
    model.eval()
    boxes: list[Finds] = []
    masks: list[Finds] = []
    for number in tqdm(range(len(test)), desc="judge", unit="photo"):
        scene = test.scene(number, side)
        found = model([scene.image.to(device)])[0]
        found["masks"] = found["masks"][:, 0] > 0.5  # a bit a pixel leaves the device, not a float
        answer = {key: value.cpu() for key, value in found.items()}
        overlaps = box_iou(answer["boxes"], _boxes(scene.masks)).double().numpy()
        boxes.append(Finds(answer["scores"], answer["labels"], overlaps, scene.classes))
        masks.append(boxes[-1]._replace(overlaps=mask_overlaps(answer["masks"], scene.masks)))
    return {
        f"{kind}_{name}": value
        for kind, found in (("box", boxes), ("mask", masks))
        for name, value in average_precision(found, len(test.classes)).items()
    }


@torch.inference_mode()
def _segmented(model: nn.Module, test: Scenes, side: int, device: torch.device) -> dict[str, float]:
    """Mean over the classes that the photos have; pixels of none count where they are taken for one of a class."""
    model.eval()
    size = len(test.classes) + 1
    counts = torch.zeros(size, size, dtype=torch.int64)
    for number in tqdm(range(len(test)), desc="judge", unit="photo"):
        scene = test.scene(number, side)
        answer = model(scene.image[None].to(device))[0].argmax(dim=0).cpu()
        truth = _semantic(scene)
        pairs = (truth * size + answer)[truth != _PADDING]
        counts += pairs.bincount(minlength=size * size).reshape(size, size)
    shared = counts.diag()
    union = counts.sum(dim=0) + counts.sum(dim=1) - shared
    there = counts.sum(dim=1) > 0
    there[0] = False  # nothing is no class
    return {"miou": 100 * float((shared / union.clamp(min=1))[there].mean()) if there.any() else 0.0}
