// The machine behind cuda_on_cpu.h: threads that take turns, every access watched, and what is wrong noted as a Fault.
//
// A thread is a fiber: a stack of its own, left and entered with longjmp. A fiber runs until it waits (__syncthreads, a warp
// collective) or returns, then the next one runs; so the order of threads is ours to choose, and each run can be repeated.
//
// access() holds an address against the arrays the kernel was given, and keeps for each word who wrote and who read it last: that
// is how bounds, uninitialised shared memory and races are found.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <type_traits>
#include <utility>

struct uint3 { unsigned x, y, z; };
typedef uint3 dim3;

#define CU_BUILTIN static __attribute__((section("cu_builtin")))
CU_BUILTIN uint3 threadIdx = {}, blockIdx = {};
CU_BUILTIN dim3 blockDim = {}, gridDim = {};
CU_BUILTIN int warpSize = 32;

namespace cu {
#define CU_PLAIN __attribute__((no_sanitize("thread", "undefined")))  // the emulator does not watch itself

enum Kind { NONE, OUT_OF_BOUNDS, UNINITIALISED, RACE, DIVERGENCE, SHUFFLE, DEADLOCK, UNDEFINED };
enum Use { READ, WRITE, ATOMIC };
struct Place { uintptr_t pc; unsigned block, thread; int line, use; };             // line, or the code address to look it up
struct Fault { int kind; Place at, other; uintptr_t address; int region; unsigned a, b; char text[128]; };
struct Region { uintptr_t begin, end, shift; };                                   // 1 << shift bytes are watched as one word
struct Record { uintptr_t pc, address; unsigned block, thread; int line, use, size, region; };

// ---- faults and fibers

enum State { RUNS, AT_BARRIER, IN_WARP, RETURNED };
constexpr int THREADS = 1024, STACK = 128 << 10, WARP = 32, DYNAMIC = 227 << 10;
struct Fiber {
    jmp_buf at; ucontext_t start; char* stack; bool live; State state; int line;
    unsigned mask, epoch; int source; uint64_t given, got;                        // of a warp collective
};
static Fiber fibers[THREADS];
static jmp_buf scheduler;
static int current, threads;
static unsigned block, barriers;                                                  // index of the block; barriers it has passed
static bool watching;
static Fault fault;
alignas(16) static char dynamic_shared[DYNAMIC];
static void (*body)(void*);
static void* body_arguments;

CU_PLAIN inline void leave(State state, int line) {
    fibers[current].state = state; fibers[current].line = line;
    if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}
CU_PLAIN inline void report(Kind kind, int line, uintptr_t pc) {
    if (fault.kind) return;
    fault.kind = kind; fault.at = {pc, block, (unsigned)current, line, READ};
}
CU_PLAIN inline void die() { leave(RETURNED, 0); abort(); }
CU_PLAIN static void begin() { for (;;) { body(body_arguments); leave(RETURNED, 0); } }
CU_PLAIN inline void resume(int t) {
    current = t; watching = true;
    if (_setjmp(scheduler)) { watching = false; return; }
    Fiber& f = fibers[t];
    if (f.live) _longjmp(f.at, 1);
    if (!f.stack) f.stack = (char*)malloc(STACK);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack; f.start.uc_stack.ss_size = STACK; f.start.uc_link = nullptr;
    makecontext(&f.start, begin, 0);
    f.live = true;
    setcontext(&f.start);
}

// ---- accesses

struct Seen { uintptr_t pc; unsigned block, thread, barriers, epoch; int line; uint8_t use, bytes; bool any; };
struct Word {                                                                     // who was here last
    Seen write, atomic[2], read[2];                                               // two threads: of another block, if one was here
    unsigned filled_by; uint8_t filled;                                           // bytes written by block filled_by - 1
};
constexpr int REGIONS = 64;
static Region regions[REGIONS];                                                   // arrays, then static and dynamic shared memory
static Word* words[REGIONS];
static int region_count, static_shared, dynamic_region;
static Record* records; static size_t record_count, record_room;
extern "C" { extern char __start_cu_shared[] __attribute__((weak)), __stop_cu_shared[] __attribute__((weak));
             extern char __start_cu_builtin[] __attribute__((weak)), __stop_cu_builtin[] __attribute__((weak)); }

CU_PLAIN inline bool ordered(const Seen& a, const Seen& b) {                      // can a and b not happen at the same time?
    if (a.block != b.block) return false;
    return a.thread == b.thread || a.barriers != b.barriers || (a.thread / WARP == b.thread / WARP && a.epoch != b.epoch);
}
CU_PLAIN inline bool clash(const Seen& a, const Seen& b) {
    return a.any && (a.bytes & b.bytes) && !ordered(a, b) && !(a.use == ATOMIC && b.use == ATOMIC);
}
CU_PLAIN inline void keep(Seen two[2], const Seen& me) {
    const bool same_block = two[0].block == me.block, far = two[1].any && two[1].block != me.block;
    if (two[0].any && !(same_block && (far || two[0].thread == me.thread))) two[1] = two[0];
    two[0] = me;
}
CU_PLAIN inline void note(Word& w, const Seen& me) {
    const Seen* other = clash(w.write, me) ? &w.write : nullptr;
    for (const Seen& a : w.atomic) if (clash(a, me)) other = &a;
    if (me.use != READ) for (const Seen& r : w.read) if (clash(r, me)) other = &r;
    if (other && !fault.kind) {
        report(RACE, me.line, me.pc);
        fault.at.use = me.use;
        fault.other = {other->pc, other->block, other->thread, other->line, other->use};
    }
    if (me.use == WRITE) w.write = me; else keep(me.use == ATOMIC ? w.atomic : w.read, me);
}
CU_PLAIN __attribute__((noinline)) void access(const void* p, int size, Use use, int line, uintptr_t pc) {
    const uintptr_t a = (uintptr_t)p, stack = (uintptr_t)fibers[current].stack;
    if (!watching || a - stack < STACK) return;                                   // its own local variables
    if (a >= (uintptr_t)__start_cu_builtin && a < (uintptr_t)__stop_cu_builtin) return;
    int k = 0;
    while (k < region_count && !(a >= regions[k].begin && a + size <= regions[k].end)) ++k;
    if (k == region_count) {
        report(OUT_OF_BOUNDS, line, pc);
        fault.at.use = use; fault.address = a; fault.a = size;
        die();
    }
    if (record_room && record_count < record_room)
        records[record_count++] = {pc, a, block, (unsigned)current, line, use, size, k};
    const bool shared = k >= static_shared;
    Seen me = {pc, block, (unsigned)current, barriers, fibers[current].epoch, line, (uint8_t)use, 0, true};
    const uintptr_t shift = regions[k].shift, grain = 1ull << shift;
    for (uintptr_t q = a & -grain; q < a + size; q += grain) {
        Word& w = words[k][(q >> shift) - (regions[k].begin >> shift)];
        const int from = q < a ? a - q : 0, to = q + grain > a + size ? a + size - q : grain;
        me.bytes = (0xF << from) & (0xF >> (4 - to));
        if (shared) {
            if (w.filled_by != block + 1) { w = {}; w.filled_by = block + 1; }     // a block's shared memory is its own
            if (use != WRITE && (w.filled & me.bytes) != me.bytes) report(UNINITIALISED, line, pc), fault.at.use = use;
            if (use != READ) w.filled |= me.bytes;
        }
        note(w, me);
        if (fault.kind) { fault.address = a; fault.region = k; fault.a = size; die(); }
    }
}

// float4 and its like are loaded and stored as a whole, as on a GPU; the compiler would take them apart.
template <class T, int N> struct Components;
template <class T> struct Components<T, 2> { T x = 0, y = 0; };
template <class T> struct Components<T, 4> { T x = 0, y = 0, z = 0, w = 0; };
template <class T, int N> struct alignas(sizeof(T) * N) Vector : Components<T, N> {
    CU_PLAIN constexpr Vector() {}
    template <class... U> CU_PLAIN constexpr Vector(T x, U... rest) : Components<T, N>{x, (T)rest...} {}
    CU_PLAIN __attribute__((noinline)) Vector(const Vector& v) {
        access(&v, sizeof v, READ, 0, (uintptr_t)__builtin_return_address(0));
        memcpy((void*)this, &v, sizeof v);
    }
    CU_PLAIN __attribute__((noinline)) Vector& operator=(const Vector& v) {
        access(&v, sizeof v, READ, 0, (uintptr_t)__builtin_return_address(0));
        access(this, sizeof v, WRITE, 0, (uintptr_t)__builtin_return_address(0));
        memcpy((void*)this, &v, sizeof v);
        return *this;
    }
};

// ---- waiting for each other

CU_PLAIN inline void bad_shuffle(int line, const char* text, unsigned a, unsigned b) {
    report(SHUFFLE, line, 0);
    snprintf(fault.text, sizeof fault.text, text, a, b);
    die();
}
// All lanes of the mask meet here; the last to arrive hands each the value of the lane it asked for.
CU_PLAIN inline uint64_t collective(unsigned mask, uint64_t value, int source, bool orders_memory, int line) {
    const int lane = current % WARP, first = current - lane;
    Fiber& me = fibers[current];
    if (!(mask >> lane & 1)) bad_shuffle(line, "lane %u is not in its own mask %08x", lane, mask);
    if (source >= 0 && !(mask >> source & 1)) bad_shuffle(line, "reads lane %u, which is not in the mask %08x", source, mask);
    if (first + source >= threads) bad_shuffle(line, "reads lane %u, which the block does not have", source, 0);
    if (threads - first < WARP) mask &= (1u << (threads - first)) - 1;             // lanes that the block lacks are not waited for
    me.mask = mask; me.given = value; me.source = source;
    for (int l = 0; l < WARP; ++l) if (mask >> l & 1) {
        const Fiber& f = fibers[first + l];
        if (f.state == RETURNED) bad_shuffle(line, "mask %08x names lane %u, which has returned", mask, l);
        if (l != lane && f.state == IN_WARP && (f.mask != mask || f.line != line) && (f.mask >> lane & 1))
            bad_shuffle(line, "lane %u waits in another collective (line %u)", l, f.line);
    }
    for (int l = 0; l < WARP; ++l) if ((mask >> l & 1) && l != lane) {
        const Fiber& f = fibers[first + l];
        if (!(f.state == IN_WARP && f.mask == mask && f.line == line)) { leave(IN_WARP, line); return me.got; }
    }
    for (int l = 0; l < WARP; ++l) if (mask >> l & 1) {
        Fiber& f = fibers[first + l];
        f.got = fibers[first + (f.source < 0 ? l : f.source)].given;
        f.state = RUNS;
        f.epoch += orders_memory;
    }
    return me.got;
}
template <class T> CU_PLAIN inline T shuffle(int line, unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = collective(mask, bits, source, false, line);
    memcpy(&value, &bits, sizeof value);
    return value;
}
CU_PLAIN inline unsigned ballot(int line, unsigned mask, bool yes) {
    unsigned votes = 0;
    for (int l = 0; l < WARP && current - current % WARP + l < threads; ++l) if (mask >> l & 1) votes |= (unsigned)(collective(mask, yes, l, false, line) & 1) << l;
    return votes;
}

// ---- a launch

CU_PLAIN inline void shuffle_order(int* order, int n, int how, uint64_t& state) {
    for (int i = 0; i < n; ++i) order[i] = how == 1 ? n - 1 - i : i;
    for (int i = n - 1; how > 1 && i > 0; --i) {
        state ^= state << 13; state ^= state >> 7; state ^= state << 17;
        const int j = state % (i + 1), t = order[i];
        order[i] = order[j]; order[j] = t;
    }
}
CU_PLAIN inline void check_waiting() {                                            // nobody runs: is that a barrier, or a fault?
    int waiting = 0, first = -1, returned = -1, alive = 0;
    for (int t = 0; t < threads; ++t) {
        const State s = fibers[t].state;
        if (s == RETURNED) { if (returned < 0) returned = t; continue; }
        ++alive;
        if (s == IN_WARP) {
            current = t;
            for (int l = 0; l < WARP; ++l)
                if ((fibers[t].mask >> l & 1) && fibers[t - t % WARP + l].state == RETURNED) {
                    report(SHUFFLE, fibers[t].line, 0);
                    snprintf(fault.text, sizeof fault.text, "mask %08x names lane %d, which has returned", fibers[t].mask, l);
                    return;
                }
            report(DEADLOCK, fibers[t].line, 0);
            fault.a = fibers[t].mask;
            return;
        }
        if (first >= 0 && fibers[t].line != fibers[first].line) {
            current = t;
            report(DIVERGENCE, fibers[t].line, 0);
            fault.a = fibers[first].line; fault.b = first;
            return;
        }
        if (first < 0) first = t;
        ++waiting;
    }
    if (alive && returned >= 0) {
        current = returned;
        report(DIVERGENCE, fibers[first].line, 0);
        fault.a = 0; fault.b = threads - alive;
    }
}
CU_PLAIN inline void run_block(const uint3* index, const int* order) {
    for (int t = 0; t < threads; ++t) { fibers[t].state = RUNS; fibers[t].epoch = 0; }
    barriers = 0;
    for (bool alive = true; alive && !fault.kind;) {
        bool moved = false;
        for (int q = 0; q < threads && !fault.kind; ++q)
            if (fibers[order[q]].state == RUNS) { threadIdx = index[order[q]]; resume(order[q]); moved = true; }
        if (fault.kind) break;
        alive = false;
        bool all_wait = true;
        for (int t = 0; t < threads; ++t) { alive |= fibers[t].state != RETURNED; all_wait &= fibers[t].state != RUNS; }
        if (!alive || (moved && !all_wait)) continue;
        check_waiting();
        ++barriers;
        for (int t = 0; t < threads; ++t) if (fibers[t].state == AT_BARRIER) fibers[t].state = RUNS;
    }
    if (fault.kind) for (int t = 0; t < threads; ++t) fibers[t].live = false;     // what their stacks held is dropped
}
template <class... P> struct Call {
    void (*kernel)(P...); void** arguments;
    template <size_t... I> CU_PLAIN static void go(Call* c, std::index_sequence<I...>) {
        c->kernel(*(std::remove_cv_t<P>*)c->arguments[I]...);
    }
    CU_PLAIN static void run(void* self) { go((Call*)self, std::index_sequence_for<P...>()); }
};
template <class... P> CU_PLAIN const Fault* launch(void (*kernel)(P...), const unsigned* grid, const unsigned* shape,
        unsigned shared_bytes, int how, void** arguments, const Region* arrays, int array_count, Record* room, size_t rooms) {
    fault = {}; records = room; record_room = rooms; record_count = 0;
    region_count = 0;
    for (int k = 0; k < array_count; ++k) regions[region_count++] = arrays[k];
    static_shared = region_count;
    regions[region_count++] = {(uintptr_t)__start_cu_shared, (uintptr_t)__stop_cu_shared, 2};
    regions[region_count++] = {(uintptr_t)dynamic_shared, (uintptr_t)dynamic_shared + shared_bytes, 2};
    for (int k = 0; k < region_count; ++k)
        words[k] = (Word*)calloc(((regions[k].end - regions[k].begin) >> regions[k].shift) + 2, sizeof(Word));
    gridDim = {grid[0], grid[1], grid[2]}; blockDim = {shape[0], shape[1], shape[2]};
    threads = shape[0] * shape[1] * shape[2];
    Call<P...> call{kernel, arguments};
    body = Call<P...>::run; body_arguments = &call;
    static uint3 index[THREADS]; static int order[THREADS];
    for (unsigned t = 0; t < (unsigned)threads; ++t)
        index[t] = {t % shape[0], t / shape[0] % shape[1], t / shape[0] / shape[1]};
    uint64_t state = 0x9E3779B97F4A7C15ull * (how + 1);
    const unsigned blocks = grid[0] * grid[1] * grid[2];
    int* block_order = (int*)malloc(blocks * sizeof(int));
    shuffle_order(block_order, blocks, how, state);
    for (unsigned q = 0; q < blocks && !fault.kind; ++q) {
        block = block_order[q];
        blockIdx = {block % grid[0], block / grid[0] % grid[1], block / grid[0] / grid[1]};
        shuffle_order(order, threads, how, state);
        run_block(index, order);
    }
    for (int k = 0; k < region_count; ++k) free(words[k]);
    free(block_order);
    return &fault;
}
} // namespace cu
