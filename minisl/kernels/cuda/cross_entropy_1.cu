// cross_entropy, rung 1: a block per row, read once.
// Threads side by side read logits side by side. Each keeps the highest logit so far and the sum of exp below it; when a higher
// one comes, the sum shrinks to fit. Two such pairs join in the same way: by shuffles in a warp, then through shared memory.
// Bytes: 4 a logit forward, 8 backward, all of them used. Operations: 7 a logit forward, two of them exp, 4 backward.

#define LOWEST -3.4028235e38f  // of all floats; exp of the distance to it is 0
#define THREADS 256

__device__ void join(float& highest, float& sum, float other_highest, float other_sum) {
    const float top = fmaxf(highest, other_highest);
    sum = sum * expf(highest - top) + other_sum * expf(other_highest - top);
    highest = top;
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy(const float* logits, const int* labels, float* losses,
                                                                    float* kept, int n, int vocab) {
    __shared__ float highs[THREADS / 32], sums[THREADS / 32];
    const int t = blockIdx.x;
    const float* z = logits + (size_t)t * vocab;
    float highest = LOWEST, sum = 0;
    for (int v = threadIdx.x; v < vocab; v += THREADS)
        join(highest, sum, z[v], 1);
    for (int distance = 16; distance > 0; distance /= 2) {
        const float other_highest = __shfl_down_sync(0xffffffff, highest, distance);
        join(highest, sum, other_highest, __shfl_down_sync(0xffffffff, sum, distance));
    }
    if (threadIdx.x % 32 == 0) {
        highs[threadIdx.x / 32] = highest;
        sums[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < THREADS / 32; ++warp)
        join(highest, sum, highs[warp], sums[warp]);
    kept[t] = highest;
    kept[n + t] = sum;
    losses[t] = labels[t] < 0 ? 0 : logf(sum) - (z[labels[t]] - highest);
}

extern "C" __global__ void __launch_bounds__(THREADS) cross_entropy_backward(const float* scale, const float* logits,
        const int* labels, const float* kept, float* dz, int n, int vocab) {
    const int t = blockIdx.x, label = labels[t];
    const float s = label < 0 ? 0 : *scale, highest = kept[t], share = s / kept[n + t];
    for (int v = threadIdx.x; v < vocab; v += THREADS) {
        const size_t k = (size_t)t * vocab + v;
        dz[k] = share * expf(logits[k] - highest) - (v == label ? s : 0);
    }
}
