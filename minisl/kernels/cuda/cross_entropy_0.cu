// cross_entropy, rung 0: a thread per row.
// loss = logsumexp(z) - z[label], dz = scale (softmax(z) - onehot(label)); a row whose label is negative takes no part. The
// highest logit is taken out before exp, which then cannot overflow. Neighbouring threads read rows far apart, 32 bytes for 4.
// Bytes: 8 a logit forward, 8 backward, eight times that as they travel. Operations: 4 a logit, and one exp each way.

#define LOWEST -3.4028235e38f  // of all floats; exp of the distance to it is 0

extern "C" __global__ void cross_entropy(const float* logits, const int* labels, float* losses, float* kept,
                                         int n, int vocab) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    const float* z = logits + (size_t)t * vocab;
    float highest = LOWEST, sum = 0;
    for (int v = 0; v < vocab; ++v)
        highest = fmaxf(highest, z[v]);
    for (int v = 0; v < vocab; ++v)
        sum += expf(z[v] - highest);
    kept[t] = highest;
    kept[n + t] = sum;
    losses[t] = labels[t] < 0 ? 0 : logf(sum) - (z[labels[t]] - highest);
}

extern "C" __global__ void cross_entropy_backward(const float* scale, const float* logits, const int* labels,
                                                  const float* kept, float* dz, int n, int vocab) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= n) return;
    const int label = labels[t];
    const float s = label < 0 ? 0 : *scale, highest = kept[t], share = s / kept[n + t];
    for (int v = 0; v < vocab; ++v) {
        const size_t k = (size_t)t * vocab + v;
        dz[k] = share * expf(logits[k] - highest) - (v == label ? s : 0);
    }
}
