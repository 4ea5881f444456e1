// sddmm, rung 1: a warp per entry.
// An entry's sum over 65,536 tokens is long: 32 threads share it, each taking every 32nd token, and shuffles add up what they
// have. Now there is work for the whole GPU even where S is small; but dY and x are read a word at a time, from 64 places.
// Bytes per entry and token: 8, 64 as they travel. Operations: 2.

extern "C" __global__ void sddmm(const float* dy, const float* x, const int* rows, const int* columns, const int* order,
                                 float* dvalues, int n, int width, int out, int nnz) {
    const int k = blockIdx.x * blockDim.y + threadIdx.y;  // a warp's threads have one k, and leave together
    const int lane = threadIdx.x;
    if (k >= nnz) return;
    float sum = 0;
    for (int t = lane; t < n; t += 32)
        sum += dy[(size_t)t * out + rows[k]] * x[(size_t)t * width + columns[k]];
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_down_sync(0xffffffff, sum, distance);
    if (lane == 0) dvalues[order[k]] = sum;
}
