// rms_norm, rung 1: a warp per row.
// 32 threads read a row side by side and add up its squares by shuffles: with __shfl_xor_sync every one of them gets the sum,
// and goes on with the row, which is still in the cache.
// Bytes: 12 an element forward, 28 backward, all of them used. Operations: 4 and 10, and 5 shuffles a row.

__device__ double warp_sum(double sum) {
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
    return sum;
}

extern "C" __global__ void rms_norm(const float* x, const float* gain, float* y, float* r, int n, int width, float eps) {
    const int t = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (t >= n) return;
    const size_t row = (size_t)t * width;
    double sum = 0;  // the square of 1e20 is no float
    for (int c = lane; c < width; c += 32)
        sum += (double)x[row + c] * x[row + c];
    const float rt = 1 / sqrt(warp_sum(sum) / width + eps);
    if (lane == 0) r[t] = rt;
    for (int c = lane; c < width; c += 32)
        y[row + c] = x[row + c] * rt * gain[c];
}

extern "C" __global__ void rms_norm_backward(const float* dy, const float* x, const float* gain, const float* r, float* dx,
                                             int n, int width) {
    const int t = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (t >= n) return;
    const size_t row = (size_t)t * width;
    const float rt = r[t];
    float sum = 0;
    for (int c = lane; c < width; c += 32)
        sum += gain[c] * dy[row + c] * (x[row + c] * rt);
    const float shrink = warp_sum(sum) / width;
    for (int c = lane; c < width; c += 32)
        dx[row + c] = rt * (gain[c] * dy[row + c] - x[row + c] * rt * shrink);
}

extern "C" __global__ void rms_norm_gain(const float* dy, const float* x, const float* r, float* parts, int n, int width) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    const int share = (n + gridDim.y - 1) / gridDim.y, from = blockIdx.y * share, to = min(n, from + share);
    if (c >= width) return;
    float sum = 0;
    for (int t = from; t < to; ++t)
        sum += dy[(size_t)t * width + c] * (x[(size_t)t * width + c] * r[t]);
    parts[(size_t)blockIdx.y * width + c] = sum;
}
