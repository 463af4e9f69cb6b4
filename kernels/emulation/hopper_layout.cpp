// The arithmetic of hopper_layout.h, for tests.
#include "hopper_layout.h"

extern "C" unsigned moeshard_swizzled(unsigned row, unsigned chunk) { return swizzled(row, chunk); }
extern "C" uint64_t moeshard_descriptor(unsigned address, unsigned k) { return advance(descriptor(address), k); }
extern "C" unsigned moeshard_sum_row(unsigned thread, unsigned i) { return sum_row(thread, i); }
extern "C" unsigned moeshard_sum_col(unsigned thread, unsigned i) { return sum_col(thread, i); }
