// rope, rung 0: a thread per pair.
// y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin for the pair (x_i, x_{i + d/2}) of a head at position t. A projection leaves its
// heads as (B, T, H, d), other arrays are (B, H, T, d): strides say where a position begins, so nothing is copied into order.
// Bytes: 24 a pair, a third of them cos and sin. Operations: 6.

extern "C" __global__ void rope(const float* x, const float* cosine, const float* sine, float* y, int heads, int positions,
                                int half, long long batch_stride, long long head_stride, long long position_stride) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;  // of the pair
    const int t = threadIdx.y + blockIdx.y * blockDim.y;
    const int h = blockIdx.z % heads, b = blockIdx.z / heads;
    if (i >= half || t >= positions) return;
    const size_t k = b * batch_stride + h * head_stride + t * position_stride + i;
    const float c = cosine[t * half + i], s = sine[t * half + i], x1 = x[k], x2 = x[k + half];
    y[k] = x1 * c - x2 * s;
    y[k + half] = x2 * c + x1 * s;
}
