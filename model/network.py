"""The masked autoencoder: the one file a reader of the paper opens.

    image -> patchify -> keep the visible patches -> encode -> latent
    latent -> put mask tokens back -> decode -> pred -> unpatchify -> image

On a CPU the service computes the same forward pass by OpenVINO graphs (``graph.py``), once these have met this file's
answers (``proof.py``).

The network receives a mask and never draws one. Patch projection and encoder see visible patches only, so a
hidden pixel cannot influence the prediction. Blocks are timm's; parameter names are those of the public
weights (``blocks.0.attn.qkv.weight``, ``decoder_pred.bias``), so a reader compares by eye.

Letters in shapes: B batch, C colours, L patches, K visible patches, D encoder width, d decoder width, P patch side.
Source: arXiv 2111.06377 (sec. 3, fig. 1, appendix A.1); layer order and init checked against its public code.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import TOKENIZER_WIDTH, MAEConfig
from model.positions import Grid, resized, sincos_positions

# The public weights were trained with this; Hugging Face's config says 1e-12, which costs 2e-5.
_LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class PatchEmbed(nn.Module):
    """Linear projection of patches, holding its weight in the shape of a convolution.

    timm's ``PatchEmbed`` convolves the whole picture; ours multiplies only the patches it is given, so the
    hidden ones cost nothing. The weight keeps the public name and shape ``proj.weight [D, C, P, P]``.
    """

    def __init__(self, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """Project patches ``[B, K, P*P*C]`` (row, column, colour last) to tokens ``[B, K, D]``."""
        # A conv weight has the colour first: move it last, as in the patches.
        weight = self.proj.weight.permute(0, 2, 3, 1).flatten(1)
        return nn.functional.linear(patches, weight, self.proj.bias)


class MAE(nn.Module):
    """Encoder and decoder of a masked autoencoder.

    Args:
        config: The shape. ``config.target`` is what ``loss`` compares with.
    """

    pos_embed: Tensor
    decoder_pos_embed: Tensor
    image_mean: Tensor
    image_std: Tensor

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        width, decoder_width = config.width, config.decoder_width

        decoder_norm = partial(nn.LayerNorm, eps=1e-5) if config.decoder == "patches" else _LayerNorm

        # timm's annotation asks for a class, and calls it like these partials
        def blocks(width: int, heads: int, depth: int, norm_layer: Any = _LayerNorm) -> nn.ModuleList:
            return nn.ModuleList(
                Block(width, heads, config.mlp_ratio, qkv_bias=True, norm_layer=norm_layer)
                for _ in range(depth)
            )

        self.patch_embed = PatchEmbed(config.patch_size, config.channels, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = blocks(width, config.heads, config.depth)
        self.norm = _LayerNorm(width)

        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_blocks = blocks(decoder_width, config.decoder_heads, config.decoder_depth, decoder_norm)
        self.decoder_norm = decoder_norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, config.target_values)
        if config.mask_tokens == "encoder":
            self.encoder_mask_token = nn.Parameter(torch.zeros(1, 1, width))
        if config.target == "pca":
            # Found once on training photos. Parameters that are never trained: states and weight files hold them.
            basis, mean = (
                torch.zeros(config.target_values, config.patch_values),
                torch.zeros(config.patch_values),
            )
            self.decoder_basis = nn.Parameter(basis, requires_grad=False)
            self.decoder_mean = nn.Parameter(mean, requires_grad=False)
        if config.target == "tokens":
            # The encoder of a discrete VAE, likewise trained beforehand and then fixed.
            self.decoder_tokenizer = nn.Sequential(
                nn.Linear(config.patch_values, TOKENIZER_WIDTH),
                nn.GELU(),
                nn.Linear(TOKENIZER_WIDTH, config.target_values),
            ).requires_grad_(False)
        #: Forget what blocks computed and compute it again for the gradients: less memory, a third more time.
        self.recompute = False

        self.set_constants()
        self.init_weights()

    def set_constants(self) -> None:
        """Compute what the config decides and no training changes: positions and the colours' scale."""
        config, grid = self.config, self.config.grid
        # Fixed, but stored in public files: buffers, so that they are saved and never trained.
        self.register_buffer("pos_embed", sincos_positions(*grid, config.width))
        self.register_buffer("decoder_pos_embed", sincos_positions(*grid, config.decoder_width))
        # Colours travel with the network but are no weights: kept out of the file.
        for name in ("image_mean", "image_std"):
            values = torch.tensor(getattr(config, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw fresh weights as the public code does: Xavier for every linear map, 0.02 for the tokens.

        But the patch projection's bias is 0, where that code leaves the convolution's default.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.patch_embed.proj
        # The patch projection is a linear map in disguise: [D, C*P*P] decides its spread.
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1), generator=generator)
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        nn.init.normal_(self.cls_token, std=0.02, generator=generator)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        if self.config.mask_tokens == "encoder":
            nn.init.normal_(self.encoder_mask_token, std=0.02, generator=generator)

    # --- pictures and patches -------------------------------------------------------------------------

    def normalise(self, image: Tensor) -> Tensor:
        """Pixels in 0..1 to the model's normalised units: ``[B, C, H, W]`` both ways."""
        return (image - self.image_mean) / self.image_std

    def patchify(self, image: Tensor) -> Tensor:
        """Cut ``[B, C, H, W]`` into ``[B, L, P*P*C]``: patches row-major; inside one row, column, colour."""
        side = self.config.patch_size
        batch, channels, height, width = image.shape
        cut = image.reshape(batch, channels, height // side, side, width // side, side)
        return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)

    def unpatchify(self, patches: Tensor, grid: Grid | None = None) -> Tensor:
        """Inverse of ``patchify``: ``[B, L, P*P*C]`` to ``[B, C, H, W]``; of the model's own grid by default."""
        side, channels = self.config.patch_size, self.config.channels
        rows, columns = grid or self.config.grid
        cut = patches.reshape(-1, rows, columns, side, side, channels)
        return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, channels, rows * side, columns * side)

    def grid_of(self, image: Tensor) -> Grid:
        """Rows and columns of patches in ``[B, C, H, W]``."""
        side = self.config.patch_size
        return image.shape[2] // side, image.shape[3] // side

    # --- encoder, decoder -------------------------------------------------------------------------------

    def encode(
        self, image: Tensor, ids_keep: Tensor | None = None, ids_restore: Tensor | None = None
    ) -> Tensor:
        """Encode the visible patches.

        Args:
            image: ``[B, C, H, W]`` normalised; any height and width in whole patches.
            ids_keep: ``[B, K] int64``, indices of the visible patches, row-major; None for all.
            ids_restore: As for ``decode``, only for a model whose mask tokens join the encoder: it then sees them in
                the hidden places.

        Returns:
            ``latent [B, 1 + K, D]``: class token, then the visible patches in the order of ``ids_keep``; with
            ``ids_restore`` all patches, row-major.
        """
        if ids_keep is None:
            rows, columns = self.grid_of(image)
            ids_keep = torch.arange(rows * columns, device=image.device).expand(image.shape[0], -1)
        visible = _take(self.patchify(image), ids_keep)  # [B, K, P*P*C]: hidden pixels end here
        positions = resized(self.pos_embed, self.config.grid, self.grid_of(image))
        where = positions[:, 1:].expand(image.shape[0], -1, -1)
        tokens = self.patch_embed(visible)
        if ids_restore is None:
            tokens = tokens + _take(where, ids_keep)
        else:
            mask_tokens = self.encoder_mask_token.to(tokens.dtype).expand(*ids_restore.shape, -1)
            tokens = _take(torch.cat([tokens, mask_tokens], dim=1), ids_restore) + where  # [B, L, D]
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(image.shape[0], -1, -1)
        tokens = torch.cat([cls_token, tokens], dim=1)  # [B, 1+K, D]
        return self.norm(self._through(self.blocks, tokens))

    def decode(
        self, latent: Tensor, ids_restore: Tensor, grid: Grid | None = None, positions: str = "both"
    ) -> Tensor:
        """Predict every patch from the latent of the visible ones.

        Args:
            latent: ``[B, 1 + K, D]`` from ``encode``.
            ids_restore: ``[B, L] int64``: where patch i stands in (visible in latent order, then hidden).
            grid: Rows and columns of the L patches; the model's own by default.
            positions: ``both``: on all tokens, as every public model was trained; ``hidden_only``: not on the visible
                ones, whose place the encoder was told, to see what they are worth there.

        Returns:
            ``pred [B, L, P*P*C]`` in target units (or whatever numbers the target has), visible patches included
            (they carry no loss).
        """
        tokens = self.decoder_embed(latent)  # [B, 1+K, d]
        batch, length = ids_restore.shape
        # Full rows of mask tokens, then a gather: the token count never becomes a Python number (export).
        mask_tokens = self.mask_token.to(tokens.dtype).expand(batch, length, -1)
        patches = _take(torch.cat([tokens[:, 1:], mask_tokens], dim=1), ids_restore)  # [B, L, d]
        where = resized(self.decoder_pos_embed, self.config.grid, grid or self.config.grid)
        if positions == "hidden_only":
            hidden = (ids_restore >= latent.shape[1] - 1).unsqueeze(-1)  # [B, L, 1]
            where = torch.cat([where[:, :1].expand(batch, -1, -1), where[:, 1:] * hidden], dim=1)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + where  # on all tokens
        # The class token is left out behind the blocks; a decoder of patches alone never sees it.
        before, behind = (1, 0) if self.config.decoder == "patches" else (0, 1)
        tokens = self._through(self.decoder_blocks, tokens[:, before:])
        return self.decoder_pred(self.decoder_norm(tokens)[:, behind:])

    def _through(self, blocks: nn.ModuleList, tokens: Tensor) -> Tensor:
        for block in blocks:
            if self.recompute and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return tokens

    def forward(
        self, image: Tensor, ids_keep: Tensor, ids_restore: Tensor, positions: str = "both"
    ) -> Tensor:
        """``decode(encode(...))``: ``pred [B, L, P*P*C]``, on the grid that the picture has."""
        if self.config.mask_tokens == "encoder":
            latent = self.encode(image, ids_keep, ids_restore)
            # Every place has its latent; the decoder's own mask token goes nowhere.
            ids_restore = torch.arange(ids_restore.shape[1], device=image.device).expand_as(ids_restore)
        else:
            latent = self.encode(image, ids_keep)
        return self.decode(latent, ids_restore, self.grid_of(image), positions)

    # --- loss -------------------------------------------------------------------------------------------

    def target(self, image: Tensor) -> Tensor:
        """What a perfect prediction would be: ``[B, L, P*P*C]`` in target units.

        ``norm_pixel`` standardises each patch over all its values (unbiased variance, eps inside the root), and
        ``norm_pixel_stats`` adds what was taken off, mean and logarithm of the deviation: ``[B, L, P*P*C + 2]``;
        ``pca`` gives the coefficients ``[B, L, 96]`` of the largest components, ``tokens`` the words ``[B, L] int64``.
        """
        patches = self.patchify(image)
        if self.config.target in ("norm_pixel", "norm_pixel_stats"):
            mean = patches.mean(dim=-1, keepdim=True)
            deviation = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            patches = (patches - mean) / deviation
            if self.config.target == "norm_pixel_stats":
                patches = torch.cat([patches, mean, deviation.log()], dim=-1)
        elif self.config.target == "pca":
            patches = nn.functional.linear(patches - self.decoder_mean, self.decoder_basis)
        elif self.config.target == "tokens":
            patches = self.decoder_tokenizer(patches).argmax(dim=-1)
        return patches

    def loss(self, image: Tensor, pred: Tensor, hidden: Tensor) -> Tensor:
        """Mean squared error over the hidden patches of the batch; for ``tokens`` cross-entropy.

        With ``norm_pixel_stats`` the error of the two statistics is added to that of the pixels.

        Args:
            image: ``[B, C, H, W]`` normalised.
            pred: ``[B, L, P*P*C]`` from ``forward``.
            hidden: ``[B, L] bool``, True where hidden; at least one.

        Returns:
            Scalar, squared target units (``tokens``: nats).
        """
        if self.config.target == "tokens":
            # [B, L]
            error = nn.functional.cross_entropy(pred.float().mT, self.target(image), reduction="none")
        else:
            square = (pred.float() - self.target(image)).square()
            error = square[..., : self.config.patch_values].mean(dim=-1)
            if self.config.target == "norm_pixel_stats":
                error = error + square[..., -2:].mean(dim=-1)  # among hundreds of pixels two would not count
        weight = hidden.float()
        return (error * weight).sum() / weight.sum()


def unfuse_on_cpu(network: nn.Module) -> None:
    """Let timm's blocks compute attention from matrix products and a softmax where they are on a CPU, for bfloat16.

    Torch's fused kernel makes no use of a CPU's units for bfloat16 products: it takes three to five times as long.
    """
    on_cpu = next(network.parameters()).device.type == "cpu"
    for module in network.modules():
        if on_cpu and isinstance(module, Attention):
            module.fused_attn = False  # type: ignore[misc]  # final for TorchScript alone


def in_decoder(name: str) -> bool:
    """Whether the weight of this name is the decoder's, which only whoever reconstructs needs."""
    return name.startswith("decoder_") or name == "mask_token"


def sees_images(name: str) -> bool:
    """Whether a weight or part of this name serves features of whole images: the encoder's but its mask token."""
    return not in_decoder(name) and name != "encoder_mask_token"


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    """Pick tokens ``[B, N, C]`` by index ``[B, M]`` -> ``[B, M, C]``."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
