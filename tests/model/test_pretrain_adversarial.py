"""The adversarial stage: it sharpens what squared error blurs, resumes exactly, and says when it has collapsed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.errors import DataError, RecipeError
from model.masking import random_hidden
from model.network import MAE
from model.pretrain import resume
from model.pretrain.adversarial import Adversary, Discriminator, _spread
from model.pretrain.beginning import Beginning
from model.pretrain.data import Photos
from model.pretrain.loop import _begin, _objective, mask_orders, step
from model.pretrain.recipe import Adversarial, Recipe
from model.pretrain.resume import Training
from model.pretrain.samples import Batch
from model.pretrain.world import ALONE, World

CPU = torch.device("cpu")


def _recipe(**changes: object) -> Recipe:
    adversarial = Adversarial(warmup_steps=1, channels=4, scales=2, **changes)  # type: ignore[arg-type]
    return Recipe(name="toy", size="debug", steps=6, batch_size=4, seed=5, lr=1e-3, adversarial=adversarial)


def _batch(recipe: Recipe, number: int) -> Batch:
    """Striped patches, bright and dark swapped or not: unknowable, so squared error paints grey."""
    generator = torch.Generator().manual_seed(number)
    side, patch = recipe.config.image_size, recipe.config.patch_size
    sign = torch.randint(0, 2, (recipe.batch_size, 1, *recipe.config.grid), generator=generator) * 2 - 1
    sign = sign.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    stripes = torch.where(torch.arange(side) % 8 < 4, 80, -80)
    images = (128 + sign * stripes).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    keys = torch.arange(recipe.batch_size).numpy().astype("uint64") + number * 1000
    patches = recipe.config.patches
    return Batch(images, torch.from_numpy(random_hidden(keys, patches, patches * 3 // 4)))


def _fresh(recipe: Recipe, out: Path, *, resumed: bool = False) -> Training:
    return _begin(recipe, Photos(()), out, CPU, resumed, None, 1)


def _train(training: Training, steps: int) -> list[float]:
    objective = _objective(training, CPU, ALONE)
    losses = []
    for _ in range(steps):
        losses.append(float(step(objective, _batch(training.recipe, training.step), training)))
        training.step += 1
    return losses


def test_only_the_decoder_learns_where_the_recipe_says_so(tmp_path: Path) -> None:
    training = _fresh(_recipe(), tmp_path)
    before = {name: value.clone() for name, value in training.network.named_parameters()}
    _train(training, 3)
    changed = {
        name for name, value in training.network.named_parameters() if not torch.equal(value, before[name])
    }
    assert changed
    assert all(name.startswith(("decoder_", "mask_token")) for name in changed)


def test_a_stage_that_begins_with_random_weights_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe()
    training = _fresh(recipe, tmp_path)
    assert "begins with random weights" in capsys.readouterr().err
    resume.save(tmp_path, training, 1.0)
    _fresh(recipe, tmp_path, resumed=True)
    _begin(recipe, Photos(()), tmp_path, CPU, False, Beginning({}, "pixel", {}), 1)
    assert capsys.readouterr().err == ""


def test_a_resumed_stage_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    recipe = _recipe(trained="all", perceptual_weight=0.5, window=40)
    whole = _fresh(recipe, tmp_path / "whole")
    losses = _train(whole, 6)
    first = _fresh(recipe, tmp_path / "cut")
    _train(first, 3)
    assert first.adversary is not None
    first.adversary.report()  # as before every state
    resume.save(tmp_path / "cut", first, 1.0)
    second = _fresh(recipe, tmp_path / "cut", resumed=True)
    assert _train(second, 3) == losses[3:]
    for name, value in whole.network.named_parameters():
        assert torch.equal(value, second.network.state_dict()[name]), name
    assert whole.adversary is not None
    assert second.adversary is not None
    for name, value in whole.adversary.network.state_dict().items():
        assert torch.equal(value, second.adversary.network.state_dict()[name]), name
    assert whole.adversary.report() == second.adversary.report()


def test_the_pull_on_the_prediction_is_that_of_the_terms_as_written() -> None:
    recipe = _recipe()
    network = MAE(recipe.config)
    adversary = Adversary(
        Adversarial(warmup_steps=0, channels=4, weight=0.5, matching_weight=3.0), network, 0
    )
    adversary.network.eval()  # no power iteration between the two passes below
    batch = _batch(recipe, 1)
    image = network.normalise(batch.images.float() / 255)
    keep, restore = mask_orders(batch.hidden, int((~batch.hidden[0]).sum()))
    pred = network(image, keep, restore)
    loss = network.loss(image, pred, batch.hidden)
    added = adversary.terms(network, image, pred, batch.hidden, loss)
    pull = torch.autograd.grad(added, pred, retain_graph=True)[0]

    side = recipe.config.patch_size
    where = (
        batch.hidden.view(-1, 1, *recipe.config.grid).repeat_interleave(side, 2).repeat_interleave(side, 3)
    )
    seen = adversary.network(torch.where(where, network.unpatchify(pred), image))
    wanted = adversary.network(image)
    hinge = -sum(scale[-1].mean() for scale in seen) / len(seen)
    pairs = [
        (a, b)
        for ours, theirs in zip(seen, wanted, strict=True)
        for a, b in zip(ours[:-1], theirs[:-1], strict=True)
    ]
    matching = sum((a - b.detach()).abs().mean() for a, b in pairs) / len(pairs)
    extra = hinge + 3.0 * matching
    weight = float(adversary._parts["weight"][-1])
    expected = torch.autograd.grad(0.5 * weight * extra, pred)[0]
    torch.testing.assert_close(pull, expected, rtol=1e-4, atol=1e-8)
    assert float(added.detach()) == pytest.approx(0.5 * weight * float(extra.detach()), rel=1e-5)


def test_the_discriminator_learns_to_tell_grey_from_stripes(tmp_path: Path) -> None:
    training = _fresh(replace(_recipe(), steps=60), tmp_path)
    adversary = training.adversary
    assert adversary is not None
    network, recipe = training.network, training.recipe
    first = last = 0.0
    for number in range(40):
        batch = _batch(recipe, number)
        image = network.normalise(batch.images.float() / 255)
        pred = torch.zeros(len(image), recipe.config.patches, recipe.config.patch_values)
        loss = network.loss(image, pred, batch.hidden).requires_grad_()
        adversary.step_made = 0  # it learns alone
        adversary.terms(network, image, pred, batch.hidden, loss)
        adversary.judge(1.0)
        adversary.step(5.0)
        last = float(adversary._sums["discriminator"][-1])
        first = first or last
    assert first == pytest.approx(1.0, abs=0.3)
    assert last < 0.75 * first


def test_the_stage_sharpens_what_squared_error_blurs(tmp_path: Path) -> None:
    sharp = replace(_recipe(trained="all", matching_weight=1.0, weight=5.0, lr=2e-3), steps=400, lr=2e-3)
    plain = replace(sharp, adversarial=None)
    spreads = {}
    for name, recipe in (("plain", plain), ("sharp", sharp)):
        training = _fresh(recipe, tmp_path / name)
        _train(training, 100)
        spreads[name] = _hidden_spread(training.network, recipe)
    # The stripes' own spread is 1.4 in these units; squared error knows nothing better than flat grey.
    assert spreads["plain"] < 0.3
    assert spreads["sharp"] > 0.6


def _hidden_spread(network: MAE, recipe: Recipe) -> float:
    batch = _batch(recipe, 9999)
    keep, restore = mask_orders(batch.hidden, int((~batch.hidden[0]).sum()))
    with torch.inference_mode():
        image = network.normalise(batch.images.float() / 255)
        pred = network(image, keep, restore)
    return float(pred.std(dim=-1)[batch.hidden].mean())


def test_a_discriminator_that_has_won_stops_the_run() -> None:
    adversary = Adversary(Adversarial(warmup_steps=0), MAE(_recipe().config), 0)
    adversary.seen["discriminator"] = 0.001
    with pytest.raises(DataError, match="tells every picture apart") as caught:
        adversary.report()
    assert caught.value.code == "collapse"


def test_a_model_that_paints_one_colour_stops_the_run() -> None:
    adversary = Adversary(Adversarial(), MAE(_recipe().config), 0)
    adversary.seen["spread"] = 0.01
    with pytest.raises(DataError, match="paints one colour"):
        adversary.report()


class _BesideOneThatHasWon(World):
    """Two processes, of which the other one's discriminator tells every picture apart."""

    def means(self, values: list[torch.Tensor]) -> list[torch.Tensor]:
        return [(value + 0) / 2 for value in values]


def test_all_processes_judge_by_everyones_means(tmp_path: Path) -> None:
    alone, together = (_fresh(_recipe(), tmp_path).adversary for _ in range(2))
    assert alone is not None
    assert together is not None
    for adversary in (alone, together):
        adversary._note(discriminator=torch.tensor(0.6), pixel=torch.tensor(3.0))
        adversary._note(discriminator=torch.tensor(0.4), pixel=torch.tensor(3.0))  # of the step's second part
        adversary.step(1.0)
        adversary._note(discriminator=torch.tensor(0.25))
        adversary.step(1.0)
    alone.share(ALONE)
    together.share(_BesideOneThatHasWon(0, 2))
    assert [float(value) for value in together._sums["discriminator"]] == [0.25, 0.125]
    ours, theirs = alone.report(), together.report()
    assert ours["discriminator"] == pytest.approx(0.98 * (0.98 + 0.02 * 0.5) + 0.02 * 0.25, abs=1e-4)
    assert theirs["discriminator"] == pytest.approx(0.98 * (0.98 + 0.02 * 0.25) + 0.02 * 0.125, abs=1e-4)
    assert (ours["pixel"], theirs["pixel"]) == pytest.approx((3.0, 1.5)), "a mean begins with the first value"


def test_the_spread_is_that_inside_hidden_patches_and_nobody_waits_for_it() -> None:
    patches = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(0))
    hidden = torch.arange(6).expand(2, -1) >= torch.tensor([[2], [4]])
    assert float(_spread(patches, hidden)) == pytest.approx(float(patches.std(dim=-1)[hidden].mean()))
    # On the meta device a shape that depends on values is an error.
    assert _spread(patches.to("meta"), hidden.to("meta")).shape == ()


def test_a_fresh_discriminator_is_a_function_of_the_seed_and_touches_no_generator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = MAE(_recipe().config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = Discriminator(4, 2).state_dict()
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    made = Adversary(Adversarial(channels=4, scales=2), network, 5).network.state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert seeded == []
    assert all(torch.equal(made[name], value) for name, value in expected.items())


def test_each_scale_sees_the_picture_at_half_the_size() -> None:
    judgements = [scale[-1].shape[-1] for scale in Discriminator(4, 3)(torch.zeros(1, 3, 64, 64))]
    assert judgements == [8, 4, 2]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"target": "norm_pixel"}, "pictures"), ({"compile": True}, "compile"), ({"precision": "fp16"}, "fp16")],
)
def test_the_stage_is_refused_where_it_cannot_work(change: dict[str, object], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        replace(_recipe(), **change)  # type: ignore[arg-type]
