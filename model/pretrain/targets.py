"""Principal components of patches, found once on training photos: a target of table 1d.

The components are part of the model: states and weight files hold them, so a resumed run asks nobody again.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from model.config import PCA_VALUES
from model.network import MAE
from model.pretrain import host
from model.pretrain.data import Photos
from model.pretrain.recipe import Recipe

#: Crops whose patches are looked at, and how many at once.
CROPS, AT_ONCE = 512, 32


def set_components(network: MAE, photos: Photos, recipe: Recipe, workers: int) -> None:
    """Fill in mean and largest principal components of the patches of the recipe's first crops.

    Args:
        network: Of target ``pca``.
        photos: What the run is trained on.
        recipe: Decides the crops.
        workers: Decoding threads.
    """
    first = replace(recipe, batch_size=AT_ONCE, accumulate=1, mask_ratio=0.5)
    stream = host.batches(photos, first, 0, workers)
    values = network.config.patch_values
    count, total, products = 0, torch.zeros(values).double(), torch.zeros(values, values).double()
    device = network.pos_embed.device
    for _ in range(CROPS // AT_ONCE):
        image = network.normalise(next(stream).images.to(device).float() / 255)
        patches = network.patchify(image).flatten(0, 1).double().cpu()
        count += len(patches)
        total += patches.sum(dim=0)
        products += patches.T @ patches
    mean = total / count
    _, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))  # smallest first
    basis = vectors[:, -PCA_VALUES:].flip(1).T
    # An eigenvector has no sign of its own: its largest value decides.
    sign = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()
    with torch.no_grad():
        network.decoder_mean.copy_(mean)
        network.decoder_basis.copy_(basis * sign)
