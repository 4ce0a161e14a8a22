"""Triton kernels for the convolution, batch norm, addition and ReLU of many networks at once.

Activations of S networks are [S, N, H, W, C]; weights are [S, K * K, inputs, outputs]. Products have the dtype of the
activations and are summed in fp32, as under autocast. Sums over a batch have a fixed order, so that a training can be
repeated bit for bit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tuned on an H100 with 42 networks: pixels of a tile and warps of a program; for weight gradients, by channels.
CONV = dict(ROWS=128, num_warps=4)
WEIGHTS = {
    16: dict(ROWS=32, num_warps=1, STAGES=3),
    32: dict(ROWS=32, num_warps=1, STAGES=3),
    64: dict(ROWS=64, num_warps=4, STAGES=3),
}
POINTS, SUMS = 2048, 4096
"""Elements of a tile in elementwise kernels and in sums."""


@triton.jit
def _tap(
    x, w, images, image, line, column, inside, network, height_in, width_in, outputs, first,
    DY: tl.constexpr, DX: tl.constexpr, C_IN: tl.constexpr, C_OUT: tl.constexpr, SIZE: tl.constexpr,
    STRIDE: tl.constexpr, BACKWARD: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    """The inputs of pixels for one kernel position (tap), and its weights."""
    if BACKWARD:
        py, px = line - DY, column - DX
        inside = inside & (py >= 0) & (px >= 0)
        if STRIDE > 1:
            inside = inside & (py % STRIDE == 0) & (px % STRIDE == 0)
            py, px = py // STRIDE, px // STRIDE
    else:
        py, px = line * STRIDE + DY, column * STRIDE + DX
        inside = inside & (py >= 0) & (px >= 0)
    inside = inside & (py < height_in) & (px < width_in)
    channel = first + tl.arange(0, IN)
    at = (((network * images + image) * height_in + py) * width_in + px) * C_IN
    if C_IN % IN == 0:
        a = tl.load(x + at[:, None] + channel[None, :], inside[:, None], 0.0)
    else:
        a = tl.load(x + at[:, None] + channel[None, :], inside[:, None] & (channel < C_IN)[None, :], 0.0)
    tap = network * SIZE * SIZE + (DY + SIZE // 2) * SIZE + DX + SIZE // 2
    if BACKWARD:  # weights are [..., C_OUT, C_IN] then
        at = (tap * C_OUT + outputs[None, :]) * C_IN + channel[:, None]
    else:
        at = (tap * C_IN + channel[:, None]) * C_OUT + outputs[None, :]
    return a, tl.load(w + at, (channel < C_IN)[:, None] & (outputs < C_OUT)[None, :], 0.0)


@triton.jit
def _convolve(
    x, w, y, stats, scale, shift, residual, images, height, width, height_in, width_in, channels,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr, BACKWARD: tl.constexpr,
    STATS: tl.constexpr, AFFINE: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (C_OUT + OUT - 1) // OUT
    # Tiles are on the first axis, the only one that allows more than 65,535 programs.
    tile, network, block = tl.program_id(0), tl.program_id(1) // blocks, tl.program_id(1) % blocks
    pixels, pixel = images * height * width, tile * ROWS + tl.arange(0, ROWS)
    column, line, image = pixel % width, (pixel // width) % height, pixel // (width * height)
    outputs, inside = block * OUT + tl.arange(0, OUT), pixel < pixels
    total = tl.zeros([ROWS, OUT], dtype=tl.float32)
    # Three loads, then their products, so that the latencies of the loads overlap.
    if SIZE == 1:
        for first in tl.static_range(0, C_IN, IN):
            a, b = _tap(x, w, images, image, line, column, inside, network, height_in, width_in, outputs, first, 0, 0,
                        C_IN, C_OUT, SIZE, STRIDE, BACKWARD, IN)  # fmt: skip
            total = tl.dot(a, b, total)
    else:
        for dy in tl.static_range(-1, 2):
            for first in tl.static_range(0, C_IN, IN):
                a0, b0 = _tap(x, w, images, image, line, column, inside, network, height_in, width_in, outputs, first,
                              dy, -1, C_IN, C_OUT, SIZE, STRIDE, BACKWARD, IN)  # fmt: skip
                a1, b1 = _tap(x, w, images, image, line, column, inside, network, height_in, width_in, outputs, first,
                              dy, 0, C_IN, C_OUT, SIZE, STRIDE, BACKWARD, IN)  # fmt: skip
                a2, b2 = _tap(x, w, images, image, line, column, inside, network, height_in, width_in, outputs, first,
                              dy, 1, C_IN, C_OUT, SIZE, STRIDE, BACKWARD, IN)  # fmt: skip
                total = tl.dot(a0, b0, total)
                total = tl.dot(a1, b1, total)
                total = tl.dot(a2, b2, total)
    channel = network * C_OUT + outputs
    at = (network * pixels + pixel)[:, None] * C_OUT + outputs[None, :]
    here = inside[:, None] & (outputs < C_OUT)[None, :]
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
        tl.store(stats + (tile * 2) * channels + channel, tl.sum(rounded, 0), outputs < C_OUT)
        tl.store(stats + (tile * 2 + 1) * channels + channel, tl.sum(rounded * rounded, 0), outputs < C_OUT)


@triton.jit
def _weight_gradient(
    x, g, parts, images, chunk, height, width, height_in, width_in, networks,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    ROWS: tl.constexpr, IN: tl.constexpr, OUT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    in_blocks: tl.constexpr = (C_IN + IN - 1) // IN
    out_blocks: tl.constexpr = (C_OUT + OUT - 1) // OUT
    # The three rows of taps are neighbouring programs, so that the second and third find their inputs in the cache.
    unit, dy, part = tl.program_id(0) // SIZE, tl.program_id(0) % SIZE - SIZE // 2, tl.program_id(1)
    network, rest = unit // (in_blocks * out_blocks), unit % (in_blocks * out_blocks)
    inputs, outputs = rest // out_blocks * IN + tl.arange(0, IN), rest % out_blocks * OUT + tl.arange(0, OUT)
    pixels = images * height * width
    left = tl.zeros([IN, OUT], dtype=tl.float32)
    middle = tl.zeros([IN, OUT], dtype=tl.float32)
    right = tl.zeros([IN, OUT], dtype=tl.float32)
    for first in tl.range(part * chunk, part * chunk + chunk, ROWS, num_stages=STAGES):
        pixel = first + tl.arange(0, ROWS)
        column, line, image = pixel % width, (pixel // width) % height, pixel // (width * height)
        at = (network * pixels + pixel)[:, None] * C_OUT + outputs[None, :]
        b = tl.load(g + at, (pixel < pixels)[:, None] & (outputs < C_OUT)[None, :], 0.0)
        py, px = line * STRIDE + dy, column * STRIDE
        inside = (py >= 0) & (py < height_in) & (pixel < pixels)
        # Transposed: [inputs, pixels].
        at = ((((network * images + image) * height_in + py) * width_in + px) * C_IN)[None, :] + inputs[:, None]
        here = inside[None, :] & (inputs < C_IN)[:, None]
        if SIZE == 3:
            a0 = tl.load(x + at - C_IN, here & (px > 0)[None, :], 0.0)
            a1 = tl.load(x + at, here, 0.0)
            a2 = tl.load(x + at + C_IN, here & (px < width_in - 1)[None, :], 0.0)
            left = tl.dot(a0, b, left)
            middle = tl.dot(a1, b, middle)
            right = tl.dot(a2, b, right)
        else:
            middle = tl.dot(tl.load(x + at, here, 0.0), b, middle)
    tap = (part * networks + network) * SIZE * SIZE + (dy + SIZE // 2) * SIZE
    here = (inputs < C_IN)[:, None] & (outputs < C_OUT)[None, :]
    at = parts + tap * C_IN * C_OUT + inputs[:, None] * C_OUT + outputs[None, :]
    if SIZE == 3:
        tl.store(at, left, here)
        tl.store(at + C_IN * C_OUT, middle, here)
        tl.store(at + 2 * C_IN * C_OUT, right, here)
    else:
        tl.store(at, middle, here)


@triton.jit
def _sums(parts, count, channel, inside, channels, TILES: tl.constexpr, BLOCK: tl.constexpr):
    """The sums of the two rows of all parts [count, 2, channels]."""
    one = tl.zeros([TILES, BLOCK], dtype=tl.float32)
    two = tl.zeros([TILES, BLOCK], dtype=tl.float32)
    for first in range(0, count, TILES):
        part = first + tl.arange(0, TILES)
        at = part[:, None] * 2 * channels + channel[None, :]
        here = (part < count)[:, None] & inside[None, :]
        one += tl.load(parts + at, here, 0.0)
        two += tl.load(parts + at + channels, here, 0.0)
    return tl.sum(one, 0), tl.sum(two, 0)


@triton.jit
def _channels(C: tl.constexpr, BLOCK: tl.constexpr):
    """A program's network, its channels in that network and among all, and whether they exist."""
    blocks: tl.constexpr = (C + BLOCK - 1) // BLOCK
    network, column = tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return network, column, network * C + column, column < C


@triton.jit
def _tile(network, column, inside, first, pixels, C: tl.constexpr, ROWS: tl.constexpr):
    """The places of a tile of pixels and channels, and whether they exist."""
    pixel = first + tl.arange(0, ROWS)
    at = (network * pixels + pixel)[:, None] * C + column[None, :]
    return at, (pixel < pixels)[:, None] & inside[None, :]


@triton.jit
def _before_relu(g, out, y, at, here, scale, shift, RESIDUAL: tl.constexpr, RELU: tl.constexpr):
    """The gradient before the ReLU, and the input of batch norm."""
    d = tl.load(g + at, here, 0.0).to(tl.float32)
    z = tl.load(y + at, here, 0.0).to(tl.float32)
    if RESIDUAL and RELU:
        d = tl.where(tl.load(out + at, here, 0.0).to(tl.float32) > 0, d, 0.0)
    elif RELU:
        d = tl.where(z * scale[None, :] + shift[None, :] > 0, d, 0.0)
    return d, z


@triton.jit
def _reduce_statistics(
    stats, gamma, beta, mean, inverse, scale, shift, running_mean, running_var,
    tiles, count, channels, momentum, eps, TILES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    one, two = _sums(stats, tiles, channel, inside, channels, TILES, BLOCK)
    m = one / count
    v = tl.maximum(two / count - m * m, 0.0)
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
    y, residual, scale, shift, out, pixels,
    C: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    network, column, channel, inside = _channels(C, BLOCK)
    at, here = _tile(network, column, inside, tl.program_id(1) * ROWS, pixels, C, ROWS)
    s, b = tl.load(scale + channel, inside, 0.0), tl.load(shift + channel, inside, 0.0)
    found = tl.load(y + at, here, 0.0).to(tl.float32) * s[None, :] + b[None, :]
    if RESIDUAL:
        found += tl.load(residual + at, here, 0.0).to(tl.float32)
    if RELU:
        found = tl.maximum(found, 0.0)
    tl.store(out + at, found.to(out.dtype.element_ty), here)


@triton.jit
def _sum_gradients(
    g, out, y, mean, inverse, scale, shift, parts, pixels, chunk, channels,
    C: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    network, column, channel, inside = _channels(C, BLOCK)
    part = tl.program_id(1)
    m, r = tl.load(mean + channel, inside, 0.0), tl.load(inverse + channel, inside, 0.0)
    s, b = tl.load(scale + channel, inside, 0.0), tl.load(shift + channel, inside, 0.0)
    one = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    two = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for first in range(part * chunk, part * chunk + chunk, ROWS):
        at, here = _tile(network, column, inside, first, pixels, C, ROWS)
        d, z = _before_relu(g, out, y, at, here, s, b, RESIDUAL, RELU)
        one += d
        two += d * (z - m[None, :]) * r[None, :]
    tl.store(parts + (part * 2) * channels + channel, tl.sum(one, 0), inside)
    tl.store(parts + (part * 2 + 1) * channels + channel, tl.sum(two, 0), inside)


@triton.jit
def _reduce_gradients(
    parts, grad_gamma, grad_beta, count, channels, TILES: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    one, two = _sums(parts, count, channel, inside, channels, TILES, BLOCK)
    tl.store(grad_beta + channel, one, inside)
    tl.store(grad_gamma + channel, two, inside)


@triton.jit
def _apply_gradients(
    g, out, y, mean, inverse, scale, shift, grad_gamma, grad_beta, grad_y, grad_residual, pixels,
    C: tl.constexpr, RESIDUAL: tl.constexpr, RELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    network, column, channel, inside = _channels(C, BLOCK)
    at, here = _tile(network, column, inside, tl.program_id(1) * ROWS, pixels, C, ROWS)
    m, r = tl.load(mean + channel, inside, 0.0), tl.load(inverse + channel, inside, 0.0)
    s, b = tl.load(scale + channel, inside, 0.0), tl.load(shift + channel, inside, 0.0)
    one, two = tl.load(grad_beta + channel, inside, 0.0) / pixels, tl.load(grad_gamma + channel, inside, 0.0) / pixels
    d, z = _before_relu(g, out, y, at, here, s, b, RESIDUAL, RELU)
    if RESIDUAL:
        tl.store(grad_residual + at, d.to(grad_residual.dtype.element_ty), here)
    found = s[None, :] * (d - one[None, :] - (z - m[None, :]) * r[None, :] * two[None, :])
    tl.store(grad_y + at, found.to(grad_y.dtype.element_ty), here)


def _block(channels: int) -> int:
    """Channels of a tile: a power of two, 16 to 64."""
    return min(64, max(16, triton.next_power_of_2(channels)))


def _chunk(pixels: int, programs: int) -> int:
    """Pixels that one program sums: a balance of many programs and few partial sums."""
    chunk = triton.next_power_of_2(max(1, pixels * programs // 2000))
    return min(max(256, chunk), 4096)


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
    """A convolution of each network, [S, N, H, W, C], or its gradient with respect to its input.

    Args:
        x: The input, or the gradient of the output.
        w: Weights [S, K * K, inputs, outputs] of ``x``'s type.
        stride: 1 or 2.
        backward_to: Height and width of the gradient; None for a convolution.
        statistics: Whether to sum each channel, and its squares, over each tile of pixels.
        affine: Scale and shift of each channel.
        residual: A tensor that is added to the output.
        relu: Whether a ReLU follows.
    """
    networks, taps, inputs, outputs = w.shape
    size = 1 if taps == 1 else 3
    backward = backward_to is not None
    if backward:
        inputs, outputs = outputs, inputs
    _, images, height_in, width_in, _ = x.shape
    height, width = backward_to or (-(-height_in // stride), -(-width_in // stride))
    y = torch.empty(networks, images, height, width, outputs, dtype=x.dtype, device=x.device)
    tiles = triton.cdiv(images * height * width, CONV['ROWS'])
    out = _block(outputs)
    stats = torch.empty(tiles, 2, networks * outputs, device=x.device) if statistics else None
    scale, shift = affine or (None, None)
    _convolve[(tiles, networks * triton.cdiv(outputs, out))](
        x.contiguous(), w, y, stats, scale, shift, None if residual is None else residual.contiguous(),
        images, height, width, height_in, width_in, networks * outputs,
        C_IN=inputs, C_OUT=outputs, SIZE=size, STRIDE=stride, BACKWARD=backward,
        STATS=statistics, AFFINE=affine is not None, RESIDUAL=residual is not None, RELU=relu,
        IN=_block(inputs), OUT=out, **CONV,
    )  # fmt: skip
    return y, stats


def weight_gradient(x: Tensor, g: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """The gradient with respect to the weights, fp32."""
    networks, taps, inputs, outputs = shape
    size = 1 if taps == 1 else 3
    _, images, height, width, _ = g.shape
    pixels = images * height * width
    block_in, block_out = _block(inputs), _block(outputs)
    blocks = triton.cdiv(inputs, block_in) * triton.cdiv(outputs, block_out)
    chunk = _chunk(pixels, networks * blocks * size)
    parts = torch.empty(triton.cdiv(pixels, chunk), *shape, device=x.device)
    tile = WEIGHTS[max(block_in, block_out)]
    _weight_gradient[(networks * blocks * size, len(parts))](
        x, g, parts, images, chunk, height, width, x.shape[2], x.shape[3], networks,
        C_IN=inputs, C_OUT=outputs, SIZE=size, STRIDE=stride, IN=block_in, OUT=block_out, **tile,
    )  # fmt: skip
    return parts.sum(0)


class ConvNorm(torch.autograd.Function):
    """``relu(batch_norm(conv(x)) + residual)`` in training mode; updates the running statistics."""

    @staticmethod
    def forward(ctx, x, weight, gamma, beta, residual, running, stride, relu, momentum, eps):  # type: ignore[no-untyped-def]
        x = x.contiguous()
        w = weight.to(x.dtype)
        y, stats = convolve(x, w, stride, statistics=True)
        networks, channels = y.shape[0], y.shape[-1]
        pixels, together = y[0].numel() // channels, networks * channels
        mean, inverse, scale, shift = torch.empty(4, together, device=x.device)
        _reduce_statistics[(triton.cdiv(together, 16),)](
            stats, gamma, beta, mean, inverse, scale, shift, *running,
            len(stats), pixels, together, momentum, eps, TILES=64, BLOCK=16,
        )  # fmt: skip
        if residual is not None:
            residual = residual.contiguous()
        out, block = torch.empty_like(y), _block(channels)
        rows = POINTS // block
        _apply[(networks * triton.cdiv(channels, block), triton.cdiv(pixels, rows))](
            y, residual, scale, shift, out, pixels,
            C=channels, RESIDUAL=residual is not None, RELU=relu, ROWS=rows, BLOCK=block,
        )  # fmt: skip
        # Without a residual, the backward pass derives the mask of the ReLU from y.
        ctx.save_for_backward(x, w, mean, inverse, scale, shift, y, None if residual is None else out)
        ctx.stride, ctx.relu, ctx.has_residual = stride, relu, residual is not None
        return out

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        x, w, mean, inverse, scale, shift, y, out = ctx.saved_tensors
        g = g.to(y.dtype).contiguous()
        networks, channels = y.shape[0], y.shape[-1]
        pixels, together = y[0].numel() // channels, networks * channels
        block = _block(channels)
        blocks, rows = networks * triton.cdiv(channels, block), POINTS // block
        chunk = _chunk(pixels, blocks)
        parts = torch.empty(triton.cdiv(pixels, chunk), 2, together, device=x.device)
        flags = dict(C=channels, RESIDUAL=ctx.has_residual, RELU=ctx.relu, BLOCK=block)
        _sum_gradients[(blocks, len(parts))](
            g, out, y, mean, inverse, scale, shift, parts, pixels, chunk, together, ROWS=SUMS // block, **flags
        )
        grad_gamma, grad_beta = torch.empty(2, together, device=x.device)
        _reduce_gradients[(triton.cdiv(together, 16),)](
            parts, grad_gamma, grad_beta, len(parts), together, TILES=64, BLOCK=16
        )
        grad_y = torch.empty_like(y)
        grad_residual = torch.empty_like(y) if ctx.has_residual else None
        _apply_gradients[(blocks, triton.cdiv(pixels, rows))](
            g, out, y, mean, inverse, scale, shift, grad_gamma, grad_beta, grad_y, grad_residual, pixels,
            ROWS=rows, **flags,
        )  # fmt: skip
        grad_weight = weight_gradient(x, grad_y, w.shape, ctx.stride)
        grad_x = convolve(grad_y, w, ctx.stride, backward_to=x.shape[2:4])[0] if ctx.needs_input_grad[0] else None
        return grad_x, grad_weight, grad_gamma, grad_beta, grad_residual, None, None, None, None, None
