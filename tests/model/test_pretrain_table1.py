"""The knobs of the paper's Table 1: decoder, mask tokens in the encoder, targets, where the loss is taken, crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints import store
from model.checkpoints.convert import convert
from model.config import VOCABULARY
from model.errors import CheckpointError, RecipeError
from model.network import MAE
from model.pretrain import feed, targets
from model.pretrain.augment import boxes, jitter, one_by_one
from model.pretrain.data import Photos
from model.pretrain.launch import pretrain
from model.pretrain.loop import Objective, mask_orders
from model.pretrain.samples import Sampler
from model.pretrain.world import World
from model.reconstruct import load
from tests.training import equal, log, run_until, toy

CPU = torch.device("cpu")
KEYS = np.arange(200, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _images(count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)


def _masks(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.arange(16).expand(count, -1) >= 4
    return *mask_orders(hidden, 4), hidden


# --- network ----------------------------------------------------------------------------------------------


def test_depth_width_and_heads_of_the_decoder_are_the_recipes(folder: Path, tmp_path: Path) -> None:
    recipe = toy(decoder_depth=3, decoder_width=48, decoder_heads=4)
    left = pretrain(recipe, [folder], tmp_path, device="cpu")
    described = load(left, "cpu").describe()
    assert [described[f"decoder_{name}"] for name in ("depth", "width", "heads")] == [3, 48, 4]


@pytest.mark.parametrize(
    ("change", "field"), [({"decoder_width": 30}, "decoder_width"), ({"decoder_depth": 0}, "decoder_depth")]
)
def test_a_decoder_that_cannot_be_built_is_refused_by_key(change: dict[str, object], field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        toy(**change)
    assert caught.value.field == field


def test_mask_tokens_in_the_encoder_are_seen_by_it_and_hidden_pixels_are_not() -> None:
    network = MAE(toy(mask_tokens="encoder").config).eval()
    ids_keep, ids_restore, hidden = _masks(2)
    image = network.normalise(_images(2).float() / 255)
    assert network.encode(image, ids_keep, ids_restore).shape == (2, 17, 32)
    pred = network(image, ids_keep, ids_restore)
    changed = torch.where(
        hidden[:, None].reshape(2, 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3), 0, image
    )
    assert torch.equal(network(changed, ids_keep, ids_restore), pred)
    with torch.no_grad():
        network.encoder_mask_token.add_(1)
    assert not torch.equal(network(image, ids_keep, ids_restore), pred)


def test_a_model_with_mask_tokens_in_the_encoder_trains_and_can_be_shown(
    folder: Path, tmp_path: Path
) -> None:
    left = pretrain(toy(mask_tokens="encoder"), [folder], tmp_path, device="cpu")
    assert load(left, "cpu")((folder / "000.jpg").read_bytes()).panel("pasted").shape == (64, 64, 3)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    losses, gradients = [], []
    for recompute in (False, True):
        torch.manual_seed(0)  # of the fresh weights
        network = MAE(toy().config).train()
        network.recompute = recompute
        loss = Objective(network, torch.float32)(_images(), *_masks())
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad for parameter in network.parameters()])
    assert torch.equal(*losses)
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True) if one is not None)


def test_recomputing_is_the_same_training(folder: Path, tmp_path: Path) -> None:
    plain, frugal = (
        pretrain(toy(recompute=recompute), [folder], tmp_path / str(recompute), device="cpu")
        for recompute in (False, True)
    )
    assert equal(plain, frugal)


# --- loss and targets -------------------------------------------------------------------------------------


def test_the_loss_can_be_taken_on_all_patches() -> None:
    network = MAE(toy().config)
    ids_keep, ids_restore, hidden = _masks()
    image = network.normalise(_images().float() / 255)
    error = (network(image, ids_keep, ids_restore) - network.target(image)).square()
    on_all, on_hidden = (
        Objective(network, torch.float32, on_all=on)(_images(), ids_keep, ids_restore, hidden)
        for on in (True, False)
    )
    assert float(on_all.detach()) == pytest.approx(float(error.mean().detach()), rel=1e-5)
    assert float(on_hidden.detach()) == pytest.approx(float(error[hidden].mean().detach()), rel=1e-5)


def test_a_recipe_says_on_which_patches_the_loss_is_taken(folder: Path, tmp_path: Path) -> None:
    hidden, everywhere = (tmp_path / name for name in ("hidden", "all"))
    pretrain(toy(steps=1), [folder], hidden, device="cpu")
    pretrain(toy(steps=1, loss_on="all"), [folder], everywhere, device="cpu")
    # The same weights, photos and masks: the loss of the first step tells what was counted.
    assert log(hidden)[0]["loss"] != log(everywhere)[0]["loss"]


def test_principal_components_explain_most_of_a_patch(folder: Path) -> None:
    recipe, photos = toy(target="pca"), Photos.open([folder])
    network = MAE(recipe.config)
    targets.set_components(network, photos, recipe, 1)
    basis = network.decoder_basis
    assert torch.allclose(basis @ basis.T, torch.eye(96), atol=1e-4)
    assert not basis.requires_grad
    images = next(feed.batches(photos, toy(batch_size=12), 50, device=CPU, workers=1)).images
    image = network.normalise(images.float() / 255)
    coefficients = network.target(image)
    assert coefficients.shape == (12, 16, 96)
    patches = network.patchify(image)
    rest = patches - (coefficients @ basis + network.decoder_mean)
    assert float(rest.square().mean() / (patches - patches.mean()).square().mean()) < 0.05
    assert (coefficients.var(dim=(0, 1))[0] > coefficients.var(dim=(0, 1))[8:]).all()


def test_a_run_on_components_resumes_bit_equal_and_its_file_is_read_back(
    folder: Path, tmp_path: Path
) -> None:
    whole = pretrain(toy(target="pca"), [folder], tmp_path / "whole", device="cpu")
    run_until(toy(target="pca"), folder, tmp_path / "parts", 5)
    parts = pretrain(toy(target="pca"), [folder], tmp_path / "parts", resumed=True, device="cpu")
    assert whole is not None
    assert parts is not None
    first, second = (store.read(path).network.state_dict() for path in (whole, parts))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert log(tmp_path / "parts")[-1] == log(tmp_path / "whole")[-1]
    with pytest.raises(CheckpointError, match="not pixels"):
        load(whole, "cpu")


def test_a_run_on_tokens_learns_their_words_first_and_resumes_bit_equal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "STEPS", 30)
    recipe = toy(target="tokens")
    whole = pretrain(recipe, [folder], tmp_path / "whole", device="cpu")
    run_until(recipe, folder, tmp_path / "parts", 5)
    monkeypatch.setattr(targets, "STEPS", 0)  # a resumed run does not learn them again
    assert equal(whole, pretrain(recipe, [folder], tmp_path / "parts", resumed=True, device="cpu"))
    losses = [line["loss"] for line in log(tmp_path / "whole")]
    assert losses[-1] < losses[0]
    with pytest.raises(CheckpointError, match="not pixels"):
        load(whole, "cpu")


def test_words_of_the_discrete_vae_say_much_about_a_patch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets, "STEPS", 100)
    recipe, photos = toy(target="tokens"), Photos.open([folder])
    network = MAE(recipe.config)
    targets.train_tokenizer(network, photos, recipe, 1)
    assert not any(parameter.requires_grad for parameter in network.decoder_tokenizer.parameters())
    images = next(feed.batches(photos, toy(batch_size=48), 50, device=CPU, workers=1)).images
    image = network.normalise(images.float() / 255)
    words, patches = network.target(image).flatten(), network.patchify(image).flatten(0, 1)
    assert len(set(words.tolist())) > 16
    counts = torch.bincount(words, minlength=VOCABULARY).clamp_min(1)[:, None]
    means = torch.zeros(VOCABULARY, patches.shape[1]).index_add_(0, words, patches) / counts
    unexplained = (patches - means[words]).square().mean() / (patches - patches.mean(dim=0)).square().mean()
    assert float(unexplained) < 0.5


@pytest.mark.parametrize("change", [{"target": "pca"}, {"target": "tokens"}, {"mask_tokens": "encoder"}])
def test_a_layout_that_cannot_say_what_a_model_is_gets_only_its_encoder(
    tmp_path: Path, change: dict[str, object]
) -> None:
    store.write(tmp_path / "odd.safetensors", MAE(toy(**change).config), name="odd", card={})
    with pytest.raises(CheckpointError, match="cannot express"):
        convert(tmp_path / "odd.safetensors", tmp_path / "folder", to="huggingface")
    encoder = convert(tmp_path / "odd.safetensors", tmp_path / "encoder.safetensors", to="timm")
    assert not [name for name in load_file(encoder) if "mask_token" in name or "decoder" in name]


# --- what of a photo is seen ------------------------------------------------------------------------------


def test_no_augmentation_is_the_centre_square_as_it_stands() -> None:
    found = boxes(KEYS, [100] * 200, [160] * 200, toy(augment="none"))
    assert set(zip(*(of.tolist() for of in found), strict=True)) == {(0, 30, 100, 100, False)}


def test_a_fixed_crop_is_a_square_anywhere_mirrored_or_not() -> None:
    found = boxes(KEYS, [160] * 200, [240] * 200, toy(augment="fixed"))
    assert set(found.height.tolist()) == set(found.width.tolist()) == {140}
    assert (found.top.min(), found.top.max()) == (0, 20)
    assert found.left.min() < 5
    assert 95 < found.left.max() <= 100
    assert 70 < found.flip.sum() < 130


def test_colours_change_by_the_key_alone_and_shapes_stay() -> None:
    images = _images(1).expand(200, -1, -1, -1) // 2 + 50
    changed = jitter(images, KEYS)
    assert torch.equal(jitter(images[:3], KEYS[5:8]), changed[5:8])
    brightness = changed.float().mean(dim=(1, 2, 3)) / images[0].float().mean()
    assert 0.55 < brightness.min() < 0.7
    assert 1.3 < brightness.max() < 1.45
    assert changed.dtype == torch.uint8


@pytest.mark.parametrize("augment", ["none", "fixed", "random"])
def test_boxes_are_the_same_one_by_one(augment: str) -> None:
    recipe, sizes = (
        toy(augment=augment, crop_scale=(0.3, 1.0)),
        np.random.default_rng(0).integers(9, 400, (200, 2)),
    )
    sizes[:20] = (10, 390)  # where most tries fit nowhere
    together = np.stack(boxes(KEYS, sizes[:, 0], sizes[:, 1], recipe), axis=1)
    box = one_by_one(KEYS, recipe)
    assert [list(box(n, *map(int, size))) for n, size in enumerate(sizes)] == together.tolist()


@pytest.mark.parametrize("augment", ["none", "fixed", "random", "colour"])
def test_both_paths_see_the_same_of_a_photo(folder: Path, augment: str) -> None:
    photos = Photos.open([folder])
    by_host, by_device = (
        next(
            feed.batches(photos, toy(augment=augment, data_path=path), 1, device=CPU, workers=1)
        ).images.int()
        for path in ("host", "device")
    )
    assert (by_host - by_device).abs().float().mean() < 0.3


# --- several crops ----------------------------------------------------------------------------------------


def test_several_crops_of_a_photo_stand_in_a_row_each_with_its_own_key(folder: Path) -> None:
    photos = Photos.open([folder])
    one, four = (Sampler(photos, toy(crops=crops)).epoch(2) for crops in (1, 4))
    assert Sampler(photos, toy(crops=4)).mean_length == 4 * len(photos)
    assert four[0].tolist() == one[0].repeat(4).tolist()
    assert four[1][::4].tolist() == one[1].tolist()
    assert len(set(four[1].tolist())) == 48


@pytest.mark.parametrize("path", ["host", "device"])
def test_crops_are_the_same_from_any_step_and_for_any_number_of_processes(
    damaged_folder: Path, path: str
) -> None:
    photos, recipe = Photos.open([damaged_folder]), toy(batch_size=12, crops=3, data_path=path)
    stream = feed.batches(photos, recipe, 0, device=CPU, workers=2)
    expected = [next(stream) for _ in range(3)][2]
    # Four processes share a batch of four photos' crops unevenly: three samples each, of two photos.
    for size in (1, 2, 4):
        parts = [
            next(feed.batches(photos, recipe, 2, device=CPU, workers=1, world=World(rank, size)))
            for rank in range(size)
        ]
        assert torch.equal(torch.cat([part.images for part in parts]), expected.images)
        assert torch.equal(torch.cat([part.hidden for part in parts]), expected.hidden)
        assert frozenset().union(*(part.broken for part in parts)) == expected.broken


def test_the_two_paths_replace_broken_photos_alike_with_several_crops(damaged_folder: Path) -> None:
    photos = Photos.open([damaged_folder])
    by_host, by_device = (
        next(feed.batches(photos, toy(batch_size=36, crops=3, data_path=path), 0, device=CPU, workers=1))
        for path in ("host", "device")
    )
    assert by_host.broken == by_device.broken != frozenset()
    assert (by_host.images.int() - by_device.images.int()).abs().float().mean() < 0.3


def test_a_run_with_several_crops_resumes_bit_equal(folder: Path, tmp_path: Path) -> None:
    recipe = toy(crops=4, augment="colour", batch_size=8)
    whole = pretrain(recipe, [folder], tmp_path / "whole", device="cpu")
    run_until(recipe, folder, tmp_path / "parts", 5)
    assert equal(whole, pretrain(recipe, [folder], tmp_path / "parts", resumed=True, device="cpu"))
    with pytest.raises(CheckpointError, match="crops"):
        pretrain(
            toy(batch_size=8, augment="colour"), [folder], tmp_path / "parts", resumed=True, device="cpu"
        )
