"""Convolution, batch norm, sum and ReLU of many networks at once, in Triton: a few large kernels, not many small ones.

Activations are [N, H, W, S * C], S networks beside each other; weights are [S, K * K, inputs, outputs]. All products
are of the activations' type, summed in fp32, as autocast has them; sums over a batch are made in a fixed order, so that
a training can be repeated bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 128
"""Pixels of a tile."""


@triton.jit
def _convolve(
    x, w, y, stats, scale, shift, residual, pixels, height, width, height_in, width_in, row_in, row_out,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, BACKWARD: tl.constexpr,
    STATS: tl.constexpr, AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    # Networks in the fastest axis: those that share cache lines run together.
    blocks: tl.constexpr = (C_OUT + OUT - 1) // OUT
    network, block, tile = tl.program_id(0) // blocks, tl.program_id(0) % blocks, tl.program_id(1)
    pixel = tile * ROWS + tl.arange(0, ROWS)
    column, line, image = pixel % width, (pixel // width) % height, pixel // (width * height)
    inputs, outputs = tl.arange(0, IN), block * OUT + tl.arange(0, OUT)
    total = tl.zeros([ROWS, OUT], dtype=tl.float32)
    for tap in tl.static_range(SIZE * SIZE):
        dy: tl.constexpr = tap // SIZE - SIZE // 2
        dx: tl.constexpr = tap % SIZE - SIZE // 2
        if BACKWARD:
            py, px = line - dy, column - dx
            inside = (py >= 0) & (px >= 0) & (py % STRIDE == 0) & (px % STRIDE == 0)
            py, px = py // STRIDE, px // STRIDE
        else:
            py, px = line * STRIDE + dy, column * STRIDE + dx
            inside = (py >= 0) & (px >= 0)
        inside = inside & (py < height_in) & (px < width_in) & (pixel < pixels)
        start = ((image * height_in + py) * width_in + px) * row_in + network * C_IN
        for first in tl.static_range(0, C_IN, IN):
            channel = first + inputs
            a = tl.load(x + start[:, None] + channel[None, :], inside[:, None] & (channel < C_IN)[None, :], 0.0)
            if BACKWARD:  # weights are [..., C_OUT, C_IN] then
                at = ((network * SIZE * SIZE + tap) * C_OUT + outputs[None, :]) * C_IN + channel[:, None]
            else:
                at = ((network * SIZE * SIZE + tap) * C_IN + channel[:, None]) * C_OUT + outputs[None, :]
            b = tl.load(w + at, (channel < C_IN)[:, None] & (outputs < C_OUT)[None, :], 0.0)
            total = tl.dot(a, b, total)
    channel = network * C_OUT + outputs
    at = pixel[:, None] * row_out + channel[None, :]
    here = (pixel < pixels)[:, None] & (outputs < C_OUT)[None, :]
    if AFFINE:
        s = tl.load(scale + channel, outputs < C_OUT, 0.0)
        total = total * s[None, :] + tl.load(shift + channel, outputs < C_OUT, 0.0)[None, :]
        if RESIDUAL:
            total += tl.load(residual + at, here, 0.0).to(tl.float32)
        if RELU:
            total = tl.maximum(total, 0.0)
    found = total.to(y.dtype.element_ty)
    tl.store(y + at, found, here)
    if STATS:
        rounded = found.to(tl.float32)
        tl.store(stats + (tile * 2) * row_out + channel, tl.sum(rounded, 0), outputs < C_OUT)
        tl.store(stats + (tile * 2 + 1) * row_out + channel, tl.sum(rounded * rounded, 0), outputs < C_OUT)


@triton.jit
def _weight_gradient(
    x, g, parts, pixels, chunk, height, width, height_in, width_in, row_in, row_out,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, NETWORKS: tl.constexpr,
):  # fmt: skip
    in_blocks: tl.constexpr = (C_IN + IN - 1) // IN
    out_blocks: tl.constexpr = (C_OUT + OUT - 1) // OUT
    network, rest = tl.program_id(0) // (in_blocks * out_blocks), tl.program_id(0) % (in_blocks * out_blocks)
    part, dy = tl.program_id(1), tl.program_id(2) - SIZE // 2
    inputs, outputs = rest // out_blocks * IN + tl.arange(0, IN), rest % out_blocks * OUT + tl.arange(0, OUT)
    left = tl.zeros([IN, OUT], dtype=tl.float32)
    middle = tl.zeros([IN, OUT], dtype=tl.float32)
    right = tl.zeros([IN, OUT], dtype=tl.float32)
    for first in range(part * chunk, part * chunk + chunk, ROWS):
        pixel = first + tl.arange(0, ROWS)
        column, line, image = pixel % width, (pixel // width) % height, pixel // (width * height)
        at = pixel[:, None] * row_out + network * C_OUT + outputs[None, :]
        b = tl.load(g + at, (pixel < pixels)[:, None] & (outputs < C_OUT)[None, :], 0.0)
        py, px = line * STRIDE + dy, column * STRIDE
        fits = (py >= 0) & (py < height_in) & (pixel < pixels)
        # Transposed: [inputs, pixels].
        start = ((image * height_in + py) * width_in + px) * row_in + network * C_IN
        ok = fits[None, :] & (inputs < C_IN)[:, None]
        if SIZE == 3:
            a = tl.load(x + start[None, :] - row_in + inputs[:, None], ok & (px > 0)[None, :], 0.0)
            left = tl.dot(a, b, left)
            a = tl.load(x + start[None, :] + row_in + inputs[:, None], ok & (px < width_in - 1)[None, :], 0.0)
            right = tl.dot(a, b, right)
        a = tl.load(x + start[None, :] + inputs[:, None], ok, 0.0)
        middle = tl.dot(a, b, middle)
    tap = (part * NETWORKS + network) * SIZE * SIZE + tl.program_id(2) * SIZE
    here = (inputs < C_IN)[:, None] & (outputs < C_OUT)[None, :]
    at = parts + tap * C_IN * C_OUT + inputs[:, None] * C_OUT + outputs[None, :]
    if SIZE == 3:
        tl.store(at, left, here)
        tl.store(at + C_IN * C_OUT, middle, here)
        tl.store(at + 2 * C_IN * C_OUT, right, here)
    else:
        tl.store(at, middle, here)


@triton.jit
def _settle(
    stats, gamma, beta, mean, inverse, scale, shift, running_mean, running_var,
    tiles, count, channels, momentum, eps, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    one = tl.zeros([TILES, BLOCK], dtype=tl.float32)
    two = tl.zeros([TILES, BLOCK], dtype=tl.float32)
    for first in range(0, tiles, TILES):
        tile = first + tl.arange(0, TILES)
        at = tile[:, None] * 2 * channels + channel[None, :]
        here = (tile < tiles)[:, None] & inside[None, :]
        one += tl.load(stats + at, here, 0.0)
        two += tl.load(stats + at + channels, here, 0.0)
    m = tl.sum(one, 0) / count
    v = tl.maximum(tl.sum(two, 0) / count - m * m, 0.0)
    r = 1 / tl.sqrt(v + eps)
    s = tl.load(gamma + channel, inside, 0.0) * r
    tl.store(mean + channel, m, inside)
    tl.store(inverse + channel, r, inside)
    tl.store(scale + channel, s, inside)
    tl.store(shift + channel, tl.load(beta + channel, inside, 0.0) - m * s, inside)
    old_mean, old_var = tl.load(running_mean + channel, inside, 0.0), tl.load(running_var + channel, inside, 0.0)
    tl.store(running_mean + channel, old_mean + momentum * (m - old_mean), inside)
    tl.store(running_var + channel, old_var + momentum * (v * count / (count - 1) - old_var), inside)


@triton.jit
def _apply(
    y, residual, scale, shift, out, pixels, channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel, pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = pixel[:, None] * channels + channel[None, :]
    here = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    s, b = tl.load(scale + channel, channel < channels, 0.0), tl.load(shift + channel, channel < channels, 0.0)
    found = tl.load(y + at, here, 0.0).to(tl.float32) * s[None, :] + b[None, :]
    if RESIDUAL:
        found += tl.load(residual + at, here, 0.0).to(tl.float32)
    if RELU:
        found = tl.maximum(found, 0.0)
    tl.store(out + at, found.to(out.dtype.element_ty), here)


@triton.jit
def _sum_gradients(
    g, out, y, mean, inverse, parts, pixels, chunk, channels,
    RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel, part = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = channel < channels
    m, r = tl.load(mean + channel, inside, 0.0), tl.load(inverse + channel, inside, 0.0)
    one = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    two = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for first in range(part * chunk, part * chunk + chunk, ROWS):
        pixel = first + tl.arange(0, ROWS)
        at = pixel[:, None] * channels + channel[None, :]
        here = (pixel < pixels)[:, None] & inside[None, :]
        d = tl.load(g + at, here, 0.0).to(tl.float32)
        if RELU:
            d = tl.where(tl.load(out + at, here, 0.0).to(tl.float32) > 0, d, 0.0)
        one += d
        two += d * (tl.load(y + at, here, 0.0).to(tl.float32) - m[None, :]) * r[None, :]
    tl.store(parts + (part * 2) * channels + channel, tl.sum(one, 0), inside)
    tl.store(parts + (part * 2 + 1) * channels + channel, tl.sum(two, 0), inside)


@triton.jit
def _settle_gradients(
    parts, of_gamma, of_beta, count, channels, TILES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    one = tl.zeros([TILES, BLOCK], dtype=tl.float32)
    two = tl.zeros([TILES, BLOCK], dtype=tl.float32)
    for first in range(0, count, TILES):
        part = first + tl.arange(0, TILES)
        at = part[:, None] * 2 * channels + channel[None, :]
        here = (part < count)[:, None] & inside[None, :]
        one += tl.load(parts + at, here, 0.0)
        two += tl.load(parts + at + channels, here, 0.0)
    tl.store(of_beta + channel, tl.sum(one, 0), inside)
    tl.store(of_gamma + channel, tl.sum(two, 0), inside)


@triton.jit
def _apply_gradients(
    g, out, y, mean, inverse, gamma, of_gamma, of_beta, of_y, of_residual, pixels, channels,
    RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel, pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = channel < channels
    m, r = tl.load(mean + channel, inside, 0.0), tl.load(inverse + channel, inside, 0.0)
    factor = tl.load(gamma + channel, inside, 0.0) * r
    one, two = tl.load(of_beta + channel, inside, 0.0) / pixels, tl.load(of_gamma + channel, inside, 0.0) / pixels
    at = pixel[:, None] * channels + channel[None, :]
    here = (pixel < pixels)[:, None] & inside[None, :]
    d = tl.load(g + at, here, 0.0).to(tl.float32)
    if RELU:
        d = tl.where(tl.load(out + at, here, 0.0).to(tl.float32) > 0, d, 0.0)
    if RESIDUAL:
        tl.store(of_residual + at, d.to(of_residual.dtype.element_ty), here)
    z = (tl.load(y + at, here, 0.0).to(tl.float32) - m[None, :]) * r[None, :]
    found = factor[None, :] * (d - one[None, :] - z * two[None, :])
    tl.store(of_y + at, found.to(of_y.dtype.element_ty), here)


def _block(channels: int, largest: int) -> int:
    """Channels of a tile: a power of two, at least 16."""
    return min(largest, max(16, triton.next_power_of_2(channels)))


def _chunk(pixels: int, programs: int) -> int:
    """Pixels that one program sums, so that there are about 1,500 programs, or so many that their sums are few."""
    chunk = triton.next_power_of_2(max(1, pixels * programs // 1500))
    return min(max(ROWS, chunk), 4096)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _new(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def convolve(
    x: Tensor,
    w: Tensor,
    stride: int,
    *,
    backward_to: tuple[int, int] | None = None,
    statistics: bool = False,
    affine: tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """A convolution of each network, [N, S * C, H, W] in ``channels_last``, or its gradient with respect to its input.

    Args:
        x: The input, or the gradient of the output.
        w: Weights [S, K * K, inputs, outputs] of ``x``'s type.
        stride: 1 or 2.
        backward_to: Height and width of the gradient; None for a convolution.
        statistics: Whether to sum each channel, and its squares, over each tile of pixels.
        affine: What each channel is multiplied by, and what is added then.
        residual: What is added besides.
        relu: Whether a ReLU follows.
    """
    networks, taps, inputs, outputs = w.shape
    size = 1 if taps == 1 else 3
    backward = backward_to is not None
    if backward:
        inputs, outputs = outputs, inputs
    count, _, height_in, width_in = x.shape
    height, width = backward_to or (-(-height_in // stride), -(-width_in // stride))
    y = _new(x, (count, networks * outputs, height, width))
    pixels = count * height * width
    tiles = triton.cdiv(pixels, ROWS)
    out = _block(outputs, 64)
    stats = torch.empty(tiles, 2, networks * outputs, device=x.device) if statistics else None
    scale, shift = affine or (None, None)
    _convolve[(networks * triton.cdiv(outputs, out), tiles)](
        x, w, y, stats, scale, shift, residual, pixels, height, width, height_in, width_in, x.shape[1], y.shape[1],
        C_IN=inputs, C_OUT=outputs, SIZE=size, STRIDE=stride, BACKWARD=backward,
        STATS=statistics, AFFINE=affine is not None, RESIDUAL=residual is not None, RELU=relu,
        ROWS=ROWS, IN=_block(inputs, 64), OUT=out,
    )  # fmt: skip
    return y, stats


def weight_gradient(x: Tensor, g: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """The gradient with respect to the weights, fp32."""
    networks, taps, inputs, outputs = shape
    size = 1 if taps == 1 else 3
    count, _, height, width = g.shape
    pixels = count * height * width
    block_in, block_out = _block(inputs, 64), _block(outputs, 64)
    blocks = triton.cdiv(inputs, block_in) * triton.cdiv(outputs, block_out)
    chunk = _chunk(pixels, networks * blocks * size)
    parts = torch.empty(triton.cdiv(pixels, chunk), *shape, device=x.device)
    _weight_gradient[(networks * blocks, len(parts), size)](
        x, g, parts, pixels, chunk, height, width, x.shape[2], x.shape[3], x.shape[1], g.shape[1],
        C_IN=inputs, C_OUT=outputs, SIZE=size, STRIDE=stride, ROWS=64, IN=block_in, OUT=block_out, NETWORKS=networks,
    )  # fmt: skip
    return parts.sum(0)


class ConvNorm(torch.autograd.Function):
    """``relu(batch_norm(conv(x)) + residual)`` in training mode; the running statistics are updated."""

    @staticmethod
    def forward(ctx, x, weight, gamma, beta, residual, running, stride, relu, momentum, eps):  # type: ignore[no-untyped-def]
        x = _channels_last(x)
        w = weight.to(x.dtype)
        y, stats = convolve(x, w, stride, statistics=True)
        pixels, channels = y.numel() // y.shape[1], y.shape[1]
        mean, inverse, scale, shift = torch.empty(4, channels, device=x.device)
        _settle[(triton.cdiv(channels, 16),)](
            stats, gamma, beta, mean, inverse, scale, shift, *running,
            len(stats), pixels, channels, momentum, eps, TILES=64, BLOCK=16,
        )  # fmt: skip
        if residual is not None:
            residual = _channels_last(residual)
        out = torch.empty_like(y)
        block = _block(channels, 64)
        grid = (triton.cdiv(channels, block), triton.cdiv(pixels, 64))
        _apply[grid](
            y, residual, scale, shift, out, pixels, channels,
            RESIDUAL=residual is not None, RELU=relu, ROWS=64, BLOCK=block,
        )  # fmt: skip
        ctx.save_for_backward(x, w, gamma, mean, inverse, y, out)
        ctx.stride, ctx.relu, ctx.has_residual = stride, relu, residual is not None
        return out

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, w, gamma, mean, inverse, y, out = ctx.saved_tensors
        g = _channels_last(g.to(y.dtype))
        pixels, channels = y.numel() // y.shape[1], y.shape[1]
        block = _block(channels, 64)
        blocks = triton.cdiv(channels, block)
        chunk = _chunk(pixels, blocks)
        parts = torch.empty(triton.cdiv(pixels, chunk), 2, channels, device=x.device)
        _sum_gradients[(blocks, len(parts))](
            g, out, y, mean, inverse, parts, pixels, chunk, channels, RELU=ctx.relu, ROWS=32, BLOCK=block
        )
        of_gamma, of_beta = torch.empty(2, channels, device=x.device)
        _settle_gradients[(triton.cdiv(channels, 16),)](
            parts, of_gamma, of_beta, len(parts), channels, TILES=64, BLOCK=16
        )
        of_y = torch.empty_like(y)
        of_residual = torch.empty_like(y) if ctx.has_residual else None
        _apply_gradients[(blocks, triton.cdiv(pixels, 64))](
            g, out, y, mean, inverse, gamma, of_gamma, of_beta, of_y, of_residual, pixels, channels,
            RESIDUAL=ctx.has_residual, RELU=ctx.relu, ROWS=64, BLOCK=block,
        )  # fmt: skip
        of_weight = weight_gradient(x, of_y, w.shape, ctx.stride)
        of_x = convolve(of_y, w, ctx.stride, backward_to=x.shape[2:])[0] if ctx.needs_input_grad[0] else None
        return of_x, of_weight, of_gamma, of_beta, of_residual, None, None, None, None, None
