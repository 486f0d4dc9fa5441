// Units joined by FIFOs, as the stream engines see them: token rates as run-length cursors, rings of
// time stamps, and the wait-for relation from which deadlocks are read.
#pragma once

#include <stdlib.h>

#include "kernel.h"

namespace {
namespace stream {

constexpr int64_t kUnbounded = INT64_MAX / 4;
constexpr int64_t kNever = INT64_MIN / 4;  // "no earlier event": smaller than every time
constexpr int64_t kBurst = 256;            // most firings at a time
constexpr int64_t kAhead = 64;             // places used of an unlimited FIFO until more are needed

enum Wait : int64_t { kNoWait = 0, kStarved = 1, kFull = 2 };
enum Status : int64_t { kFinished = 0, kDeadlock = 1, kLimit = 2, kHopeless = 3 };

// A growing array without the standard library (see kernel.h).
template <typename T>
struct Array {
  T* data = nullptr;
  int64_t size = 0, room = 0;
  ~Array() { free(data); }
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  bool resize(int64_t count) {
    if (count > room) {
      const int64_t wanted = count > 2 * room ? count : 2 * room;
      T* moved = static_cast<T*>(realloc(static_cast<void*>(data), wanted * sizeof(T)));
      if (moved == nullptr) return false;
      data = moved;
      room = wanted;
    }
    size = count;
    return true;
  }
  bool push(const T& value) {
    if (!resize(size + 1)) return false;
    data[size - 1] = value;
    return true;
  }
  T& operator[](int64_t i) { return data[i]; }
  const T& operator[](int64_t i) const { return data[i]; }
};

// Where a port stands in its run-length list of (firings, tokens per firing).
struct Cursor {
  const int64_t* lengths;
  const int64_t* tokens;
  int64_t runs, run, left;

  bool constant() const { return runs == 1; }
  int64_t count() const { return tokens[run]; }
  int64_t period() const {
    int64_t sum = 0;
    for (int64_t i = 0; i < runs; ++i) sum += lengths[i];
    return sum;
  }
  // Returns true when the list starts anew.
  bool advance(int64_t firings) {
    if (constant()) return false;
    left -= firings;
    if (left > 0) return false;
    run = run + 1 == runs ? 0 : run + 1;
    left = lengths[run];
    return run == 0;
  }
};

struct Port {
  Cursor cursor;
  int32_t fifo;
  int32_t level;  // of the fast-forward snapshots taken when this cursor wraps; -1: none
};

struct Description {
  int64_t unit_count, fifo_count;
  const int64_t *firings, *interval;
  const int64_t *in_offset, *in_fifo, *out_offset, *out_fifo;
  const int64_t *depth, *times, *initial;  // times: [fifo][latency, send latency, response latency]
  const int64_t *rate_offset, *rate_length, *rate_tokens;
  const int64_t* total;  // tokens that a FIFO carries in a complete run
};

constexpr int kDescriptionArguments = 13;

inline const char* read_description(const Call& call, Description* d) {
  if (call.argument_count < kDescriptionArguments) return "a stream network has 13 arrays";
  for (int i = 0; i < kDescriptionArguments; ++i)
    if (call.arguments[i].type != DataType::int64) return "stream networks are int64 arrays";
  const int64_t* arrays[kDescriptionArguments];
  for (int i = 0; i < kDescriptionArguments; ++i)
    arrays[i] = static_cast<const int64_t*>(call.arguments[i].data);
  d->unit_count = elements(call.arguments[0]);
  d->fifo_count = elements(call.arguments[6]);
  d->firings = arrays[0];
  d->interval = arrays[1];
  d->in_offset = arrays[2];
  d->in_fifo = arrays[3];
  d->out_offset = arrays[4];
  d->out_fifo = arrays[5];
  d->depth = arrays[6];
  d->times = arrays[7];
  d->initial = arrays[8];
  d->rate_offset = arrays[9];
  d->rate_length = arrays[10];
  d->rate_tokens = arrays[11];
  d->total = arrays[12];
  return nullptr;
}

inline int64_t power_of_two(int64_t at_least) {
  int64_t size = 1;
  while (size < at_least) size *= 2;
  return size;
}

// Token counts and cursors: everything about a run except time.
struct Fifo {
  int64_t sent, got, depth;
  int64_t limit;  // of execution: the depth, or how far the producer of an unlimited FIFO runs ahead
  int32_t producer, consumer;
};

struct Unit {
  int64_t firings, fired;  // to do, done
  int64_t run_left;        // firings until some cursor changes its run
  int64_t since;           // firings that the cursors have not been told of
  int32_t first_in, ins, first_out, outs;
  int32_t active_in, active_out;
  bool single;  // every active port moves one token a firing
  bool queued;
  int64_t wait;
  int32_t wait_fifo;
};

struct Tokens {
  Description d;
  Array<Unit> units;
  Array<Fifo> fifos;
  Array<Port> ports;            // inputs of unit 0, outputs of unit 0, inputs of unit 1, ...
  Array<int32_t> active;        // same layout: indices of the ports that move tokens now
  Array<int32_t> queue;
  int64_t head = 0, waiting = 0;

  Cursor cursor(int64_t list) const {
    const int64_t first = d.rate_offset[list];
    return {d.rate_length + first, d.rate_tokens + first, d.rate_offset[list + 1] - first, 0,
            d.rate_length[first]};
  }

  bool start(const Description& description) {
    d = description;
    const int64_t port_count = d.in_offset[d.unit_count] + d.out_offset[d.unit_count];
    if (!units.resize(d.unit_count) || !fifos.resize(d.fifo_count) || !ports.resize(port_count) ||
        !active.resize(port_count) || !queue.resize(d.unit_count))
      return false;
    for (int64_t f = 0; f < d.fifo_count; ++f) {
      // A depth that can never be reached is no limit: nothing ever waits for room.
      const bool limited = d.depth[f] >= 0 && d.depth[f] < d.total[f];
      const int64_t depth = limited ? d.depth[f] : kUnbounded;
      const int64_t limit = limited ? depth : larger(kAhead, 2 * d.initial[f]);
      fifos[f] = {d.initial[f], 0, depth, limit, 0, 0};
    }
    int32_t at = 0;
    for (int32_t u = 0; u < d.unit_count; ++u) {
      Unit& unit = units[u];
      unit = {};
      unit.firings = d.firings[u];
      unit.first_in = at;
      for (int64_t i = d.in_offset[u]; i < d.in_offset[u + 1]; ++i, ++at) {
        const int32_t f = static_cast<int32_t>(d.in_fifo[i]);
        ports[at] = {cursor(2 * f + 1), f, -1};
        fifos[f].consumer = u;
      }
      unit.ins = at - unit.first_in;
      unit.first_out = at;
      for (int64_t i = d.out_offset[u]; i < d.out_offset[u + 1]; ++i, ++at) {
        const int32_t f = static_cast<int32_t>(d.out_fifo[i]);
        ports[at] = {cursor(2 * f), f, -1};
        fifos[f].producer = u;
      }
      unit.outs = at - unit.first_out;
      refresh(unit);
      unit.queued = unit.firings > 0;
      if (unit.queued) queue[waiting++] = u;
    }
    return true;
  }

  // Recompute which ports move tokens, after a cursor changed its run.
  void refresh(Unit& unit) {
    unit.single = true;
    unit.run_left = kUnbounded;
    unit.since = 0;
    unit.active_in = unit.active_out = 0;
    for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p) {
      const Cursor& cursor = ports[p].cursor;
      if (!cursor.constant()) unit.run_left = smaller(unit.run_left, cursor.left);
      if (cursor.count() == 0) continue;
      if (cursor.count() != 1) unit.single = false;
      if (p < unit.first_out)
        active[unit.first_in + unit.active_in++] = p;
      else
        active[unit.first_out + unit.active_out++] = p;
    }
  }

  // Tell the cursors of `firings` more firings; returns a bit mask of the snapshot levels reached.
  uint32_t advance(Unit& unit, int64_t firings) {
    unit.firings -= firings;
    unit.fired += firings;
    unit.since += firings;
    unit.run_left -= firings;
    return unit.run_left > 0 ? 0 : flush(unit);
  }

  uint32_t flush(Unit& unit) {
    uint32_t levels = 0;
    for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p)
      if (ports[p].cursor.advance(unit.since) && ports[p].level >= 0) levels |= 1u << ports[p].level;
    refresh(unit);
    return levels;
  }

  // How many whole firings may run now; 0 records what the unit waits for.
  int64_t ready(Unit& unit) {
    int64_t count = smaller(smaller(unit.run_left, unit.firings), kBurst);
    for (int32_t i = 0; i < unit.active_in; ++i) {
      const Port& port = ports[active[unit.first_in + i]];
      const Fifo& fifo = fifos[port.fifo];
      int64_t there = fifo.sent - fifo.got;
      if (!unit.single) there /= port.cursor.count();
      if (there <= 0) return wait(unit, kStarved, port.fifo);
      count = smaller(count, there);
    }
    for (int32_t i = 0; i < unit.active_out; ++i) {
      const Port& port = ports[active[unit.first_out + i]];
      const Fifo& fifo = fifos[port.fifo];
      int64_t room = fifo.limit - (fifo.sent - fifo.got);
      if (!unit.single) room /= port.cursor.count();
      if (room <= 0) return wait(unit, kFull, port.fifo);
      count = smaller(count, room);
    }
    return count;
  }

  int64_t wait(Unit& unit, int64_t kind, int32_t fifo) {
    unit.wait = kind;
    unit.wait_fifo = fifo;
    return 0;
  }

  bool next(int32_t* unit) {
    if (waiting == 0) return false;
    *unit = queue[head];
    head = head + 1 == d.unit_count ? 0 : head + 1;
    --waiting;
    units[*unit].queued = false;
    units[*unit].wait = kNoWait;
    return true;
  }

  void enqueue(int32_t u) {
    if (units[u].queued || units[u].firings <= 0) return;
    units[u].queued = true;
    int64_t tail = head + waiting++;
    if (tail >= d.unit_count) tail -= d.unit_count;
    queue[tail] = u;
  }

  void wake(int32_t u, int64_t kind, int32_t fifo) {
    if (units[u].wait == kind && units[u].wait_fifo == fifo) enqueue(u);
  }

  void wake_neighbours(const Unit& unit) {
    for (int32_t i = 0; i < unit.ins; ++i) {
      const int32_t f = ports[unit.first_in + i].fifo;
      wake(fifos[f].producer, kFull, f);
    }
    for (int32_t i = 0; i < unit.outs; ++i) {
      const int32_t f = ports[unit.first_out + i].fifo;
      wake(fifos[f].consumer, kStarved, f);
    }
  }

  // Move the tokens of `firings` firings; the counters only.
  void move(const Unit& unit, int64_t firings) {
    for (int32_t i = 0; i < unit.active_in; ++i) {
      const Port& port = ports[active[unit.first_in + i]];
      fifos[port.fifo].got += firings * port.cursor.count();
    }
    for (int32_t i = 0; i < unit.active_out; ++i) {
      const Port& port = ports[active[unit.first_out + i]];
      fifos[port.fifo].sent += firings * port.cursor.count();
    }
  }

  // With nothing left to run, let the producers of unlimited FIFOs run further ahead. How far they
  // do changes no time; keeping them close keeps states small and periodic.
  bool relax() {
    bool any = false;
    for (int32_t u = 0; u < d.unit_count; ++u) {
      Unit& unit = units[u];
      if (unit.firings <= 0 || unit.wait != kFull) continue;
      Fifo& fifo = fifos[unit.wait_fifo];
      if (fifo.depth < kUnbounded) continue;
      fifo.limit *= 2;
      enqueue(u);
      any = true;
    }
    return any;
  }

  bool finished() const {
    for (int64_t u = 0; u < d.unit_count; ++u)
      if (units[u].firings > 0) return false;
    return true;
  }

  int32_t blocker(const Unit& unit) const {
    const Fifo& fifo = fifos[unit.wait_fifo];
    return unit.wait == kStarved ? fifo.producer : fifo.consumer;
  }
};

// ---------------------------------------------------------------- states for fast-forward
constexpr int kLevels = 8;
constexpr int kSnapshots = 16;

// A whole state of an engine; states of equal signature may differ in times and positions only.
struct Snapshot {
  Array<int64_t> words;
  uint64_t signature = 0;
  bool used = false;
};

struct Level {
  Snapshot snapshots[kSnapshots];
  int64_t next, tries, skip, pause, looked_at;
};

}  // namespace stream
}  // namespace
