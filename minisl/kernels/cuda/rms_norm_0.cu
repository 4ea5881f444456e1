// rms_norm, rung 0: a thread per row.
// y = g x r with r = (mean x^2 + eps)^(-1/2); dx = r (g dy) - x r^3 mean(g dy x). A row is read twice, by one thread, while its
// neighbours read theirs: 32 bytes travel for 4. rms_norm_gain sums dg = dy x r over rows, a thread per column, in blockIdx.y
// slices of rows, whose `parts` (gridDim.y, width) are added up afterwards.
// Bytes: 12 an element forward, 28 backward, eight times that as they travel. Operations: 4 and 10.

extern "C" __global__ void rms_norm(const float* x, const float* gain, float* y, float* r, int n, int width, float eps) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    const size_t row = (size_t)t * width;
    double sum = 0;  // the square of 1e20 is no float
    for (int c = 0; c < width; ++c)
        sum += (double)x[row + c] * x[row + c];
    r[t] = 1 / sqrt(sum / width + eps);
    for (int c = 0; c < width; ++c)
        y[row + c] = x[row + c] * r[t] * gain[c];
}

extern "C" __global__ void rms_norm_backward(const float* dy, const float* x, const float* gain, const float* r, float* dx,
                                             int n, int width) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    const size_t row = (size_t)t * width;
    float sum = 0;
    for (int c = 0; c < width; ++c)
        sum += gain[c] * dy[row + c] * (x[row + c] * r[t]);
    for (int c = 0; c < width; ++c)
        dx[row + c] = r[t] * (gain[c] * dy[row + c] - x[row + c] * r[t] * (sum / width));
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
