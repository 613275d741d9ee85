"""Targets of table 1d that must be learnt themselves, before the run, on its own photos.

    pca     principal components of patches
    tokens  words of a discrete VAE that sees one patch at a time

Both are then fixed parts of the model: states and weight files hold them, so a resumed run learns them no second time.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from model.config import PCA_VALUES, TOKENIZER_WIDTH, VOCABULARY
from model.network import MAE
from model.pretrain import host
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe

#: Crops whose patches are learnt from, and how many are loaded at once.
CROPS, AT_ONCE = 512, 32
#: Steps of the discrete VAE's training, its learning rate, and how soft its choice of a word is at first and at last.
STEPS, RATE, SOFTNESS = 1000, 2e-3, (1.0, 0.1)
#: Patches a step.
PATCHES = 1024
#: Weight of the pull towards using all words equally.
EVENNESS = 1.0
#: Numbers that stand for a word in the VAE's decoder.
WORD_VALUES = 64


def learn(network: MAE, photos: Photos, recipe: Recipe, workers: int) -> None:
    """Learn what a fresh network's target needs; nothing for pixels.

    Args:
        network: On its device; the target's fixed parameters are filled in.
        photos: What the run is trained on.
        recipe: Decides the crops.
        workers: Decoding threads.
    """
    if recipe.target == "pca":
        set_components(network, photos, recipe, workers)
    elif recipe.target == "tokens":
        train_tokenizer(network, photos, recipe, workers)


def _patches(network: MAE, photos: Photos, recipe: Recipe, workers: int) -> Tensor:
    """Patches ``[N, P*P*C]`` of the recipe's first crops, ImageNet-normalised."""
    first = replace(recipe, batch_size=AT_ONCE, accumulate=1, crops=1)
    device = network.pos_embed.device
    batches = islice(host.batches(photos, first, 0, workers), CROPS // AT_ONCE)
    images = torch.cat([batch.images for batch in batches]).to(device)
    return network.patchify(network.normalise(images.float() / 255)).flatten(0, 1)


def set_components(network: MAE, photos: Photos, recipe: Recipe, workers: int) -> None:
    """Fill in mean and largest principal components of patches."""
    patches = _patches(network, photos, recipe, workers).cpu().double()  # not every device has float64
    mean = patches.mean(dim=0)
    _, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean))  # smallest first
    basis = vectors[:, -PCA_VALUES:].flip(1).T
    # An eigenvector has no sign of its own: its largest value decides.
    sign = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()
    with torch.no_grad():
        network.decoder_mean.copy_(mean)
        network.decoder_basis.copy_(basis * sign)


def train_tokenizer(network: MAE, photos: Photos, recipe: Recipe, workers: int) -> None:
    """Train a discrete VAE of patches, and keep its encoder as the network's tokenizer.

    A word is chosen softly at first, with noise, and ever more sharply.
    Source: arXiv 2102.12092 (dVAE), arXiv 1611.01144 (Gumbel-softmax); the paper borrows the former's.
    """
    device = network.pos_embed.device
    generator = torch.Generator(device).manual_seed(recipe.seed)
    encoder = network.decoder_tokenizer.requires_grad_(True)
    words = nn.Parameter(torch.randn(VOCABULARY, WORD_VALUES, generator=generator, device=device))
    decoder = nn.Sequential(
        nn.Linear(WORD_VALUES, TOKENIZER_WIDTH),
        nn.GELU(),
        nn.Linear(TOKENIZER_WIDTH, network.config.patch_values),
    ).to(device)
    optimiser = torch.optim.AdamW(
        [*encoder.parameters(), words, *decoder.parameters()], lr=RATE, weight_decay=0.0
    )
    everything = _patches(network, photos, recipe, workers)
    for step in range(STEPS):
        patches = everything[torch.randint(len(everything), (PATCHES,), generator=generator, device=device)]
        logits = encoder(patches)
        uniform = torch.rand(logits.shape, generator=generator, device=device).clamp_(1e-6, 1 - 1e-6)
        softness = SOFTNESS[0] * (SOFTNESS[1] / SOFTNESS[0]) ** (step / STEPS)
        chosen = ((logits - (-uniform.log()).log()) / softness).softmax(dim=-1)
        error = (decoder(chosen @ words) - patches).square().mean()
        used = logits.softmax(dim=-1).mean(dim=0)
        loss = error + EVENNESS * (used * (used * VOCABULARY).clamp_min(1e-6).log()).sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    encoder.requires_grad_(False)
