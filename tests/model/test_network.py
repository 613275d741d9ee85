"""The network against independent implementations, and the properties the paper rests on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.config import SIZES, MAEConfig
from model.errors import CheckpointError
from model.masking import sample_mask
from model.network import MAE
from model.positions import resized, sincos_positions


def _inputs(config: MAEConfig, count: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, ids_keep, ids_restore, hidden: another mask for each picture of the batch."""
    masks = [sample_mask("random", config.grid, count, seed) for seed in range(batch)]
    image = torch.randn(
        batch, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(1)
    )
    return (
        image,
        torch.from_numpy(np.stack([mask.ids_keep for mask in masks])),
        torch.from_numpy(np.stack([mask.ids_restore for mask in masks])),
        torch.from_numpy(np.stack([mask.hidden for mask in masks])),
    )


# --- transformers as the oracle ---------------------------------------------------------------------------


def _with_noise(network: MAE) -> MAE:
    """Biases and norms away from their trivial start, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def _oracle(network: MAE, ratio: float) -> Any:
    """transformers' ViTMAE with the same weights, by its own names for them."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = network.config
    oracle = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.width,
            image_size=config.image_size,
            patch_size=config.patch_size,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=4 * config.decoder_width,
            layer_norm_eps=1e-6,
            mask_ratio=ratio,
            norm_pix_loss=config.target == "norm_pixel",
        )
    )
    oracle.train(False)
    ours = network.state_dict()
    theirs: dict[str, Tensor] = {}
    for name in oracle.state_dict():
        theirs[name] = _ours_for(name, ours)
    oracle.load_state_dict(theirs, strict=True)
    return oracle


_RENAMED = [
    ("vit.embeddings.cls_token", "cls_token"),
    ("vit.embeddings.position_embeddings", "pos_embed"),
    ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("vit.layernorm", "norm"),
    ("vit.layers.", "blocks."),
    ("decoder.decoder_layers.", "decoder_blocks."),
    ("decoder.", ""),
    ("attention.o_proj", "attn.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
]


def _ours_for(name: str, ours: dict[str, Tensor]) -> Tensor:
    for theirs, house in _RENAMED:
        name = name.replace(theirs, house, 1) if theirs in name else name
    for place, part in enumerate(("q_proj", "k_proj", "v_proj")):
        if part in name:
            return ours[name.replace(f"attention.{part}", "attn.qkv")].chunk(3)[place]
    return ours[name]


@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "target"), [(0.75, "pixel"), (0.4, "norm_pixel")])
def test_vit_base_predicts_and_scores_as_transformers_does(ratio: float, target: str) -> None:
    network = MAE(MAEConfig(target=target))  # type: ignore[arg-type]
    network.init_weights(torch.Generator().manual_seed(0))
    oracle = _oracle(_with_noise(network), ratio)
    image, ids_keep, ids_restore, hidden = _inputs(network.config, 147 if ratio == 0.75 else 79)
    with torch.inference_mode():
        pred = network(image, ids_keep, ids_restore)
        loss = network.loss(image, pred, hidden)
        # Noise whose order is our mask: visible patches first.
        expected = oracle(image, noise=ids_restore.float())
    assert torch.equal(expected.mask.bool(), hidden)
    assert float((pred - expected.logits).abs().max() / expected.logits.abs().max()) < 1e-5
    assert abs(float(loss) - float(expected.loss)) < 1e-6 * max(1.0, float(expected.loss))


# --- shapes and sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "entries", "values"),
    [("vit_base", 254, 111_907_840), ("vit_large", 398, 329_541_888), ("vit_huge", 494, 657_074_508)],
)
def test_named_sizes_have_the_public_number_of_weights(size: str, entries: int, values: int) -> None:
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAE, "init_weights", lambda self: None)
        state = MAE(SIZES[size]).state_dict()
    assert len(state) == entries
    assert sum(value.numel() for value in state.values()) == values


def test_parameter_names_are_the_public_ones(debug_network: MAE) -> None:
    state = debug_network.state_dict()
    assert state["patch_embed.proj.weight"].shape == (32, 3, 16, 16)
    assert state["blocks.0.attn.qkv.weight"].shape == (96, 32)
    assert state["decoder_pred.bias"].shape == (768,)
    assert state["mask_token"].shape == (1, 1, 32)
    assert state["pos_embed"].shape == (1, 17, 32)


@pytest.mark.parametrize(
    "wrong", [{"image_size": 100}, {"width": 30}, {"heads": 5}, {"decoder_width": 6}, {"target": "sound"}]
)
def test_impossible_shapes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        MAEConfig(**wrong)


def test_unknown_config_keys_are_refused() -> None:
    with pytest.raises(CheckpointError, match="wings"):
        MAEConfig.from_dict({"wings": 2})


def test_a_config_survives_its_plain_values() -> None:
    assert MAEConfig.from_dict(SIZES["small"].to_dict()) == SIZES["small"]


# --- positions --------------------------------------------------------------------------------------------


def test_positions_encode_the_column_first_then_the_row() -> None:
    """Channel by channel from the definition, in plain Python."""
    rows, columns, width = 3, 5, 16
    table = sincos_positions(rows, columns, width)[0]
    assert not table[0].any(), "the class token has no place"
    quarter = width // 4
    for y in range(rows):
        for x in range(columns):
            frequencies = [10000 ** (-k / quarter) for k in range(quarter)]
            expected = (
                [math.sin(x * f) for f in frequencies] + [math.cos(x * f) for f in frequencies]
                + [math.sin(y * f) for f in frequencies] + [math.cos(y * f) for f in frequencies]
            )  # fmt: skip
            assert table[1 + y * columns + x].tolist() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("grid", [(7, 7), (10, 20), (20, 20), (28, 28), (40, 5)])
def test_positions_of_another_grid_are_those_of_the_trained_table_resized(grid: tuple[int, int]) -> None:
    table = sincos_positions(14, 14, 64)
    cells = table[:, 1:].reshape(1, 14, 14, 64).permute(0, 3, 1, 2)
    bicubic = nn.functional.interpolate(cells, size=grid, mode="bicubic").flatten(2).transpose(1, 2)
    ours = resized(table, (14, 14), grid)
    assert ours.shape == (1, 1 + grid[0] * grid[1], 64)
    assert not ours[:, 0].any(), "the class token's row stays zero"
    assert float(nn.functional.cosine_similarity(ours[:, 1:], bicubic, dim=-1).mean()) > 0.995


def test_positions_of_the_own_grid_are_the_stored_ones() -> None:
    table = torch.randn(1, 17, 8, generator=torch.Generator().manual_seed(0))
    assert resized(table, (4, 4), (4, 4)) is table


def test_positions_that_are_no_formula_are_resized_in_both_directions() -> None:
    table = torch.zeros(1, 17, 4)
    table[0, 1:, 0] = torch.arange(4.0).repeat_interleave(4)  # the row
    table[0, 1:, 1] = torch.arange(4.0).repeat(4)  # the column
    other = resized(table, (4, 4), (6, 9))[0, 1:].reshape(6, 9, 4)
    assert torch.allclose(other[..., 0], other[:, :1, 0].expand(6, 9), atol=1e-5)
    assert torch.allclose(other[..., 1], other[:1, :, 1].expand(6, 9), atol=1e-5)
    assert bool((other[1:, 0, 0] > other[:-1, 0, 0]).all())


def test_decoder_positions_of_hidden_patches_alone_are_as_if_the_others_were_zero(debug_network: MAE) -> None:
    image, ids_keep, ids_restore, _ = _inputs(debug_network.config, 12, batch=1)
    alone = debug_network(image, ids_keep, ids_restore, "hidden_only")
    assert not torch.allclose(alone, debug_network(image, ids_keep, ids_restore))
    debug_network.decoder_pos_embed[0, 1 + ids_keep[0]] = 0
    assert torch.allclose(alone, debug_network(image, ids_keep, ids_restore), atol=1e-6)


# --- other grids and channels -----------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "grid"), [(1, (4, 4)), (3, (5, 9)), (5, (6, 4))])
def test_any_channels_and_grid_are_predicted(channels: int, grid: tuple[int, int]) -> None:
    network = MAE(replace(SIZES["debug"], channels=channels)).eval()
    mask = sample_mask("random", grid, 12, 1)
    ids_keep, ids_restore = (torch.from_numpy(ids)[None] for ids in (mask.ids_keep, mask.ids_restore))
    image = torch.randn(1, channels, 16 * grid[0], 16 * grid[1], generator=torch.Generator().manual_seed(1))
    pred = network(image, ids_keep, ids_restore)
    assert network.unpatchify(pred, grid).shape == image.shape
    assert torch.equal(network.unpatchify(network.patchify(image), grid), image)
    assert torch.isfinite(network.loss(image, pred, torch.from_numpy(mask.hidden)[None]))


# --- patches ----------------------------------------------------------------------------------------------


def test_patchify_and_back_is_the_same_picture(debug_network: MAE) -> None:
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(debug_network.unpatchify(debug_network.patchify(image)), image)


def test_a_patch_holds_rows_then_columns_then_colours(debug_network: MAE) -> None:
    image = torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64).float()
    patches = debug_network.patchify(image)
    assert patches.shape == (1, 16, 768)
    # Patch 5 is row 1, column 1 of the 4 x 4 grid; its value (2, 3, blue) is pixel (18, 19) of channel 2.
    assert patches[0, 5, (2 * 16 + 3) * 3 + 2] == image[0, 2, 18, 19]


def test_projecting_patches_is_the_convolution_of_the_paper(debug_network: MAE) -> None:
    image = torch.randn(2, 3, 64, 64)
    tokens = debug_network.patch_embed(debug_network.patchify(image))
    convolved: Tensor = nn.Conv2d.forward(debug_network.patch_embed.proj, image)
    torch.testing.assert_close(tokens, convolved.flatten(2).mT, atol=1e-5, rtol=1e-5)


# --- what may influence what ------------------------------------------------------------------------------


def test_a_hidden_pixel_never_influences_the_prediction(debug_network: MAE) -> None:
    image, ids_keep, ids_restore, hidden = _inputs(debug_network.config, 12)
    other = debug_network.patchify(image)
    other[hidden] = 99.0
    with torch.inference_mode():
        before = debug_network(image, ids_keep, ids_restore)
        after = debug_network(debug_network.unpatchify(other), ids_keep, ids_restore)
    assert float((before - after).abs().max()) == 0.0


def test_a_visible_pixel_influences_every_patch(debug_network: MAE) -> None:
    image, ids_keep, ids_restore, hidden = _inputs(debug_network.config, 12)
    other = debug_network.patchify(image)
    other[~hidden] += 1.0
    with torch.inference_mode():
        before = debug_network(image, ids_keep, ids_restore)
        after = debug_network(debug_network.unpatchify(other), ids_keep, ids_restore)
    assert float((before - after).abs().amax(dim=-1).min()) > 0


def test_a_batch_gives_what_its_members_give_alone(debug_network: MAE) -> None:
    image, ids_keep, ids_restore, _ = _inputs(debug_network.config, 12, batch=4)
    with torch.inference_mode():
        together = debug_network(image, ids_keep, ids_restore)
        alone = torch.cat(
            [debug_network(image[i : i + 1], ids_keep[i : i + 1], ids_restore[i : i + 1]) for i in range(4)]
        )
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_the_order_of_visible_patches_does_not_matter(debug_network: MAE) -> None:
    image, ids_keep, ids_restore, _ = _inputs(debug_network.config, 12)
    turned = ids_keep.flip(1)
    restore = torch.where(ids_restore < 4, 3 - ids_restore, ids_restore)
    with torch.inference_mode():
        torch.testing.assert_close(
            debug_network(image, turned, restore),
            debug_network(image, ids_keep, ids_restore),
            atol=1e-5,
            rtol=1e-5,
        )


# --- loss -------------------------------------------------------------------------------------------------


def test_the_loss_counts_hidden_patches_only(debug_network: MAE) -> None:
    image, _, _, hidden = _inputs(debug_network.config, 12)
    pred = debug_network.target(image).clone()
    pred[~hidden] += 100
    assert float(debug_network.loss(image, pred, hidden)) == 0
    pred[hidden] += 2
    assert float(debug_network.loss(image, pred, hidden)) == pytest.approx(4, rel=1e-5)


def test_normalised_targets_have_mean_zero_and_unbiased_deviation_one() -> None:
    network = MAE(MAEConfig(**{**SIZES["debug"].to_dict(), "target": "norm_pixel"}))
    target = network.target(torch.randn(2, 3, 64, 64) * 3 + 1)
    assert float(target.mean(dim=-1).abs().max()) < 1e-5
    torch.testing.assert_close(target.var(dim=-1), torch.ones(2, 16), atol=1e-5, rtol=1e-5)


def test_a_nearly_flat_patch_is_divided_by_the_root_of_its_variance_and_a_millionth() -> None:
    """The public code's order: outside the root the same patch would come out twenty times as strong."""
    network = MAE(replace(SIZES["debug"], target="norm_pixel"))
    image = torch.zeros(1, 3, 64, 64)
    image[..., ::2] = 1e-4
    target = network.target(image)
    deviation = network.patchify(image)[0, 0].var()
    assert target.max() == pytest.approx(5e-5 / math.sqrt(deviation + 1e-6), rel=1e-3)


def test_fresh_weights_are_spread_as_in_the_public_code() -> None:
    """Xavier's uniform for every linear map, the patch projection as the flat one it is; 0.02 for the tokens."""
    config = replace(SIZES["debug"], width=192, heads=3, decoder_width=96, mask_tokens="encoder")
    network, again = MAE(config), MAE(config)
    for one in (network, again):
        one.init_weights(torch.Generator().manual_seed(0))
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), f"{name} is the generator's alone"
    drawn = {
        name: parameter.flatten(1)
        for name, parameter in network.named_parameters()
        if parameter.ndim > 1 and "token" not in name and "pos_embed" not in name
    }
    assert "patch_embed.proj.weight" in drawn
    for name, weight in drawn.items():
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.98 * bound < weight.abs().max() <= bound, name
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    for token in (network.cls_token, network.mask_token, network.encoder_mask_token):
        assert float(token.detach().std()) == pytest.approx(0.02, rel=0.25)
