// rope, rung 1: a thread per pair, of every head.
// All heads turn by the same angles: a thread reads cos and sin once and takes its pair of each head, so a third of the bytes
// go. x and y do not overlap (__restrict__), so a load need not wait for the store before it.
// Bytes: 16 a pair. Operations: 6.

extern "C" __global__ void rope(const float* __restrict__ x, const float* cosine, const float* sine,
                                float* __restrict__ y, int heads, int positions, int half,
                                long long batch_stride, long long head_stride, long long position_stride) {
    const int i = threadIdx.x + blockIdx.x * blockDim.x;  // of the pair
    const int t = threadIdx.y + blockIdx.y * blockDim.y;
    const int b = blockIdx.z;
    if (i >= half || t >= positions) return;
    const float c = cosine[t * half + i], s = sine[t * half + i];
    for (int h = 0; h < heads; ++h) {
        const size_t k = b * batch_stride + h * head_stride + t * position_stride + i;
        const float x1 = x[k], x2 = x[k + half];
        y[k] = x1 * c - x2 * s;
        y[k + half] = x2 * c + x1 * s;
    }
}
