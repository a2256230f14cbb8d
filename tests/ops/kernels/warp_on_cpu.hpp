// Runs a CUDA kernel on a CPU, warp by warp: enough of CUDA for unisolo/ops/kernels/mma.py.
//
// Each lane is a coroutine. What lanes exchange goes through `slots`: a lane writes its value and
// waits until the other 31 have written theirs. That holds only for kernels whose warps do not
// diverge around an exchange, and that do not synchronise warps; a lane left behind is an error.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

using std::max;
using std::min;

struct uint4 { unsigned x, y, z, w; };
struct Place { unsigned x, y, z; };

#define __global__
#define __launch_bounds__(...)
#define __shared__ static

static Place blockIdx, threadIdx;
static const int LANES = 32;
static ucontext_t scheduler, lanes[LANES];
static bool done[LANES];
static int current;
static long long slots[LANES][6];

static void wait_for_others() { swapcontext(&lanes[current], &scheduler); }

// All values that the lanes gave, slot by slot.
template <typename Take> static auto exchange(std::initializer_list<long long> given, Take take) {
  std::copy(given.begin(), given.end(), slots[current]);
  wait_for_others();
  auto taken = take();
  wait_for_others();  // so that nobody writes before everybody has read
  return taken;
}

static void __syncwarp(unsigned) { wait_for_others(); }

static int __reduce_min_sync(unsigned, int value) {
  return exchange({value}, [] {
    long long least = slots[0][0];
    for (int lane = 1; lane < LANES; ++lane) least = min(least, slots[lane][0]);
    return int(least);
  });
}

static int __reduce_max_sync(unsigned, int value) { return -__reduce_min_sync(0, -value); }

template <typename Value> static Value __shfl_sync(unsigned, Value value, int from) {
  return exchange({value}, [=] { return Value(slots[from][0]); });
}

static int atomicAdd(int* address, int value) {
  int old = *address;
  *address += value;
  return old;
}

// mma.m16n8k256 .b1 .and.popc, as the PTX ISA lays out its fragments: 32 bits per register, lane =
// 4 * group + quarter. a0, a1 hold the low 128 bits of rows group and group + 8, a2, a3 the high
// ones; b0, b1 those of column group; c0, c1 are row group, columns 2 * quarter and the next, c2,
// c3 the same of row group + 8.
static void mma(int (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                unsigned b1) {
  const int group = current / 4, quarter = current % 4;
  struct Sums { int values[4]; };
  const Sums added = exchange({a0, a1, a2, a3, b0, b1}, [=] {
    Sums made = {};
    for (int t = 0; t < 4; ++t) {
      const int column = quarter * 2 + t % 2;
      for (int q = 0; q < 4; ++q) {
        const long long* row = slots[4 * group + q];
        const long long* other = slots[4 * column + q];
        made.values[t] += __builtin_popcount(unsigned(row[t / 2] & other[4]));
        made.values[t] += __builtin_popcount(unsigned(row[2 + t / 2] & other[5]));
      }
    }
    return made;
  });
  for (int t = 0; t < 4; ++t) sums[t] += added.values[t];
}

// Run `lane_main` on the 32 lanes of warp `warp`, in turns until all have returned.
static void run_warp(int warp, void (*lane_main)()) {
  static std::vector<char> stacks(LANES * 65536);
  for (int lane = 0; lane < LANES; ++lane) {
    done[lane] = false;
    getcontext(&lanes[lane]);
    lanes[lane].uc_stack.ss_sp = stacks.data() + lane * 65536;
    lanes[lane].uc_stack.ss_size = 65536;
    lanes[lane].uc_link = &scheduler;
    makecontext(&lanes[lane], lane_main, 0);
  }
  while (!done[0]) {
    for (current = 0; current < LANES; ++current) {
      threadIdx = {unsigned(warp * LANES + current), 0, 0};
      swapcontext(&scheduler, &lanes[current]);
      if (done[current] != done[0]) {
        std::fprintf(stderr, "the lanes of a warp part before an exchange\n");
        std::abort();
      }
    }
  }
}
