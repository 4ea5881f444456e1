// spmm, rung 1: a row per warp.
// The 32 threads of a warp share one row and one token: each takes every 32nd entry, so entries are read side by side, and
// shuffles add up the 32 sums from register to register.
// Bytes per entry and token: 8 for the entry, all of them used, and a sector of 32 of x. Operations: 2, and 5 shuffles a row.

extern "C" __global__ void spmm(const float* x, const float* values, const int* columns, const int* starts, float* y,
                                int n, int width, int out) {
    const int i = blockIdx.x;
    const int t = blockIdx.y * blockDim.y + threadIdx.y;  // a warp's threads have one t
    const int lane = threadIdx.x;
    if (t >= n) return;
    const float* xt = x + (size_t)t * width;
    float sum = 0;
    for (int p = starts[i] + lane; p < starts[i + 1]; p += 32)
        sum += values[p] * xt[columns[p]];
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_down_sync(0xffffffff, sum, distance);
    if (lane == 0) y[(size_t)t * out + i] += sum;
}
