// The generic engine of stream networks: a worklist over units, each fired as often as tokens and
// room allow, with time stamps carried on the FIFOs. The rules are those of
// trimtab.simulate.stream.reference; in a Kahn network the order of execution changes no time.
//
// Exact periodic fast-forward: when two states differ by one constant on everything that moved
// between them, the moves between them can be repeated as often as no rate changes, each time later
// by the same constant. Whatever did not move in between is left alone.
#pragma once

#include "stream_network.h"

namespace {
namespace stream {

struct Timing {
  int64_t *visible, *received_write, *received_read;
  int64_t visible_mask, write_mask, read_mask;
  int64_t latency, send_latency, response_latency;
  int64_t starved, blocked;
};

struct Clock {
  int64_t time, interval;
  int64_t step, started;  // progress within a firing that sequential ports have begun
};

struct Engine {
  Tokens net;
  Array<Timing> timing;
  Array<Clock> clocks;
  Array<int64_t> scratch;
  Level* levels = nullptr;
  int64_t never = kNever, trash = 0;
  int32_t reference = -1;
  bool atomic = true, record = false, forward = false;
  int64_t events = 0, skipped = 0, jumps = 0;
  const int64_t* record_offset = nullptr;
  int64_t *record_visible = nullptr, *record_received = nullptr;

  ~Engine() {
    for (int64_t f = 0; f < timing.size; ++f) {
      free(timing[f].visible);
      if (timing[f].received_write != &trash) free(timing[f].received_write);
    }
    if (levels != nullptr) {
      for (int i = 0; i < kLevels; ++i) levels[i].~Level();
      free(levels);
    }
  }

  bool start(const Description& d) {
    if (!net.start(d) || !timing.resize(d.fifo_count) || !clocks.resize(d.unit_count)) return false;
    memset(static_cast<void*>(timing.data), 0, timing.size * sizeof(Timing));
    for (int64_t u = 0; u < d.unit_count; ++u) clocks[u] = {0, d.interval[u], 0, 0};
    for (int64_t f = 0; f < d.fifo_count; ++f) timing[f].received_write = &trash;
    for (int64_t f = 0; f < d.fifo_count; ++f)
      if (!make_rings(f)) return false;
    return !forward || choose_levels();
  }

  bool make_rings(int64_t f) {
    Timing& t = timing[f];
    const Fifo& fifo = net.fifos[f];
    const bool limited = fifo.depth < kUnbounded;
    int64_t size = power_of_two(fifo.limit);
    if (record) size = power_of_two(larger(size, net.d.total[f]));
    t.visible = static_cast<int64_t*>(malloc(size * sizeof(int64_t)));
    if (t.visible == nullptr) return false;
    t.visible_mask = size - 1;
    for (int64_t i = 0; i < net.d.initial[f]; ++i) t.visible[i] = 0;
    t.received_read = &never;
    if (limited || record) {
      t.received_write = static_cast<int64_t*>(malloc(size * sizeof(int64_t)));
      if (t.received_write == nullptr) {
        t.received_write = &trash;
        return false;
      }
      for (int64_t i = 0; i < size; ++i) t.received_write[i] = kNever;
      t.write_mask = size - 1;
      if (limited) {
        t.received_read = t.received_write;
        t.read_mask = t.write_mask;
      }
    }
    t.latency = net.d.times[3 * f];
    t.send_latency = net.d.times[3 * f + 1];
    t.response_latency = net.d.times[3 * f + 2];
    return true;
  }

  bool grow_ring(int64_t f, int64_t tokens) {
    Timing& t = timing[f];
    const Fifo& fifo = net.fifos[f];
    const int64_t needed = fifo.sent - fifo.got + tokens;
    if (needed <= t.visible_mask + 1) return true;
    const int64_t size = power_of_two(needed);
    int64_t* wider = static_cast<int64_t*>(malloc(size * sizeof(int64_t)));
    if (wider == nullptr) return false;
    for (int64_t n = fifo.got; n < fifo.sent; ++n)
      wider[n & (size - 1)] = t.visible[n & t.visible_mask];
    free(t.visible);
    t.visible = wider;
    t.visible_mask = size - 1;
    return true;
  }

  // ------------------------------------------------------------------------------ firing
  // `count` whole firings; the number of active ports is known at compile time.
  template <int I, int O, bool kAtomic>
  void fire(Unit& unit, Clock& clock, int64_t count) noexcept {
    constexpr int kIn = I > 0 ? I : 1, kOut = O > 0 ? O : 1;
    const int64_t *in_visible[kIn], *out_received[kOut];
    int64_t *in_received[kIn], *out_visible[kOut];
    int64_t in_mask[kIn], in_write[kIn], got[kIn], starved[kIn];
    int64_t out_mask[kOut], out_read[kOut], sent[kOut], depth[kOut], blocked[kOut];
    int64_t latency[kOut], send_latency[kOut], response_latency[kOut];
    for (int i = 0; i < I; ++i) {
      const int32_t f = net.ports[net.active[unit.first_in + i]].fifo;
      const Timing& t = timing[f];
      in_visible[i] = t.visible;
      in_mask[i] = t.visible_mask;
      in_received[i] = t.received_write;
      in_write[i] = t.write_mask;
      got[i] = net.fifos[f].got;
      starved[i] = 0;
    }
    for (int o = 0; o < O; ++o) {
      const int32_t f = net.ports[net.active[unit.first_out + o]].fifo;
      const Timing& t = timing[f];
      out_visible[o] = t.visible;
      out_mask[o] = t.visible_mask;
      out_received[o] = t.received_read;
      out_read[o] = t.read_mask;
      sent[o] = net.fifos[f].sent;
      depth[o] = net.fifos[f].depth;
      latency[o] = t.latency;
      send_latency[o] = t.send_latency;
      response_latency[o] = t.response_latency;
      blocked[o] = 0;
    }
    int64_t time = clock.time;
    const int64_t interval = clock.interval;
    for (int64_t n = 0; n < count; ++n) {
#pragma GCC unroll 8
      for (int i = 0; i < I; ++i) {
        const int64_t later = larger(time, in_visible[i][(got[i] + n) & in_mask[i]]);
        starved[i] += later - time;
        time = later;
        in_received[i][(got[i] + n) & in_write[i]] = time;
      }
      const int64_t started = time;
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
        const int64_t free_at =
            out_received[o][(sent[o] + n - depth[o]) & out_read[o]] + response_latency[o];
        const int64_t later = larger(time, free_at);
        blocked[o] += later - time;
        time = later;
        if (!kAtomic)
          out_visible[o][(sent[o] + n) & out_mask[o]] =
              larger(started + latency[o], time + send_latency[o]);
      }
      if (kAtomic) {
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o)
          out_visible[o][(sent[o] + n) & out_mask[o]] =
              larger(started + latency[o], time + send_latency[o]);
      }
      time += interval;
    }
    clock.time = time;
    for (int i = 0; i < I; ++i) {
      const int32_t f = net.ports[net.active[unit.first_in + i]].fifo;
      net.fifos[f].got += count;
      timing[f].starved += starved[i];
    }
    for (int o = 0; o < O; ++o) {
      const int32_t f = net.ports[net.active[unit.first_out + o]].fifo;
      net.fifos[f].sent += count;
      timing[f].blocked += blocked[o];
    }
    events += count * O;
  }

  int64_t receive(int32_t f, int64_t time) {
    Timing& t = timing[f];
    const int64_t n = net.fifos[f].got++;
    const int64_t later = larger(time, t.visible[n & t.visible_mask]);
    t.starved += later - time;
    t.received_write[n & t.write_mask] = later;
    return later;
  }

  int64_t await_room(int32_t f, int64_t ahead, int64_t time) {
    Timing& t = timing[f];
    const int64_t n = net.fifos[f].sent + ahead;
    const int64_t free_at =
        t.received_read[(n - net.fifos[f].depth) & t.read_mask] + t.response_latency;
    const int64_t later = larger(time, free_at);
    t.blocked += later - time;
    return later;
  }

  void send(int32_t f, int64_t started, int64_t time) {
    Timing& t = timing[f];
    t.visible[net.fifos[f].sent++ & t.visible_mask] =
        larger(started + t.latency, time + t.send_latency);
    ++events;
  }

  // Any number of ports and of tokens per firing.
  void fire_any(Unit& unit, Clock& clock, int64_t count) noexcept {
    for (int64_t n = 0; n < count; ++n) {
      int64_t time = clock.time;
      for (int32_t i = 0; i < unit.active_in; ++i) {
        const Port& port = net.ports[net.active[unit.first_in + i]];
        for (int64_t k = port.cursor.count(); k > 0; --k) time = receive(port.fifo, time);
      }
      const int64_t started = time;
      for (int32_t o = 0; o < unit.active_out; ++o) {
        const Port& port = net.ports[net.active[unit.first_out + o]];
        for (int64_t k = 0; k < port.cursor.count(); ++k) {
          time = await_room(port.fifo, atomic ? k : 0, time);
          if (!atomic) send(port.fifo, started, time);
        }
      }
      if (atomic)
        for (int32_t o = 0; o < unit.active_out; ++o) {
          const Port& port = net.ports[net.active[unit.first_out + o]];
          for (int64_t k = port.cursor.count(); k > 0; --k) send(port.fifo, started, time);
        }
      clock.time = time + clock.interval;
    }
  }

  using Fire = void (Engine::*)(Unit&, Clock&, int64_t) noexcept;

  template <bool kAtomic>
  Fire specialised(int ins, int outs) {
    static constexpr Fire table[4][5] = {
        {&Engine::fire<0, 0, kAtomic>, &Engine::fire<0, 1, kAtomic>, &Engine::fire<0, 2, kAtomic>,
         &Engine::fire<0, 3, kAtomic>, &Engine::fire<0, 4, kAtomic>},
        {&Engine::fire<1, 0, kAtomic>, &Engine::fire<1, 1, kAtomic>, &Engine::fire<1, 2, kAtomic>,
         &Engine::fire<1, 3, kAtomic>, &Engine::fire<1, 4, kAtomic>},
        {&Engine::fire<2, 0, kAtomic>, &Engine::fire<2, 1, kAtomic>, &Engine::fire<2, 2, kAtomic>,
         &Engine::fire<2, 3, kAtomic>, &Engine::fire<2, 4, kAtomic>},
        {&Engine::fire<3, 0, kAtomic>, &Engine::fire<3, 1, kAtomic>, &Engine::fire<3, 2, kAtomic>,
         &Engine::fire<3, 3, kAtomic>, &Engine::fire<3, 4, kAtomic>}};
    return ins < 4 && outs < 5 ? table[ins][outs] : &Engine::fire_any;
  }

  static constexpr int kNoMemory = 3;

  // One step of a firing whose ports act one after another; returns 1 for progress, 2 at its end.
  int step(Unit& unit, Clock& clock) {
    int64_t at = 0;
    for (int32_t i = 0; i < unit.active_in; ++i) {
      const Port& port = net.ports[net.active[unit.first_in + i]];
      for (int64_t k = port.cursor.count(); k > 0; --k, ++at) {
        if (at != clock.step) continue;
        const Fifo& fifo = net.fifos[port.fifo];
        if (fifo.sent == fifo.got) return static_cast<int>(net.wait(unit, kStarved, port.fifo));
        clock.time = receive(port.fifo, clock.time);
        clock.started = clock.time;
        ++clock.step;
        net.wake(fifo.producer, kFull, port.fifo);
        return 1;
      }
    }
    if (at == clock.step && clock.step == 0) clock.started = clock.time;
    for (int32_t o = 0; o < unit.active_out; ++o) {
      const Port& port = net.ports[net.active[unit.first_out + o]];
      for (int64_t k = port.cursor.count(); k > 0; --k, ++at) {
        if (at != clock.step) continue;
        const Fifo& fifo = net.fifos[port.fifo];
        if (fifo.sent - fifo.got >= fifo.limit)
          return static_cast<int>(net.wait(unit, kFull, port.fifo));
        clock.time = await_room(port.fifo, 0, clock.time);
        if (fifo.depth == kUnbounded && !grow_ring(port.fifo, 1)) return kNoMemory;
        send(port.fifo, clock.started, clock.time);
        ++clock.step;
        net.wake(fifo.consumer, kStarved, port.fifo);
        return 1;
      }
    }
    clock.time += clock.interval;
    clock.step = 0;
    return 2;
  }

  // Ports in turn until something is missing; returns the number of whole firings (0 or 1).
  int64_t fire_in_steps(Unit& unit, Clock& clock, uint32_t* reached) {
    for (;;) {
      const int outcome = step(unit, clock);
      if (outcome == 0) return 0;
      if (outcome == kNoMemory) return -1;
      if (outcome == 2) {
        *reached |= net.advance(unit, 1);
        return 1;
      }
    }
  }

  // Fire unit u until it must wait; false when memory ran out.
  bool visit(int32_t u) {
    Unit& unit = net.units[u];
    Clock& clock = clocks[u];
    for (int rounds = 0; unit.firings > 0; ++rounds) {
      if (rounds == 64) {
        net.enqueue(u);
        return true;
      }
      int64_t count = clock.step == 0 ? net.ready(unit) : 0;
      uint32_t reached = 0;
      if (count > 0) {
        for (int32_t o = 0; o < unit.active_out; ++o) {
          const Port& port = net.ports[net.active[unit.first_out + o]];
          if (net.fifos[port.fifo].depth == kUnbounded &&
              !grow_ring(port.fifo, count * port.cursor.count()))
            return false;
        }
        const Fire fire_now = !unit.single ? &Engine::fire_any
                              : atomic     ? specialised<true>(unit.active_in, unit.active_out)
                                           : specialised<false>(unit.active_in, unit.active_out);
        (this->*fire_now)(unit, clock, count);
        net.wake_neighbours(unit);
        reached = net.advance(unit, count);
      } else {
        if (!atomic) count = fire_in_steps(unit, clock, &reached);
        if (count <= 0) return count == 0;
      }
      if (forward) {
        if (u == reference) reached |= 1;
        if (reached != 0) look_for_period(reached);
      }
    }
    return true;
  }

  Status run(int64_t event_limit) {
    int32_t u;
    do {
      while (net.next(&u)) {
        if (!visit(u)) return kHopeless;
        if (events > event_limit) return kLimit;
      }
    } while (net.relax());
    return net.finished() ? kFinished : kDeadlock;
  }

  // ------------------------------------------------------------------------ fast-forward
  // Level 0 follows the busiest unit burst by burst; the others one wrap of each distinct period.
  bool choose_levels() {
    levels = static_cast<Level*>(calloc(kLevels, sizeof(Level)));
    if (levels == nullptr) return false;
    int64_t periods[kLevels] = {0};
    int used = 1;
    for (int32_t u = 0; u < net.d.unit_count; ++u) {
      Unit& unit = net.units[u];
      if (reference < 0 || unit.firings > net.units[reference].firings) reference = u;
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p) {
        const Cursor& cursor = net.ports[p].cursor;
        if (cursor.constant() || used == kLevels) continue;
        const int64_t period = cursor.period();
        bool known = unit.firings < 4 * period;
        for (int i = 1; i < used; ++i) known = known || periods[i] == period;
        if (known) continue;
        periods[used] = period;
        net.ports[p].level = used++;
      }
    }
    return true;
  }

  int64_t state_size() const {
    int64_t words = 0;
    for (int64_t f = 0; f < net.d.fifo_count; ++f) {
      const Fifo& fifo = net.fifos[f];
      words += 8 + (fifo.depth < kUnbounded ? fifo.depth : fifo.sent - fifo.got);
    }
    return words + 4 * net.d.unit_count;
  }

  void look_for_period(uint32_t reached) {
    for (int i = 0; i < kLevels; ++i) {
      if ((reached >> i & 1) == 0) continue;
      Level& level = levels[i];
      // A new row is a new chance for the level below, unless rows are too short to matter.
      const int64_t fired = net.units[reference].fired;
      if (i > 0 && fired - level.looked_at > 512) {
        levels[0].pause = levels[0].tries = levels[0].skip = 0;
        level.looked_at = fired;
      }
      if (level.skip > 0) {
        --level.skip;
        continue;
      }
      if (try_level(level)) {
        levels[0].pause = levels[0].tries = levels[0].skip = 0;
        return;
      }
      // No period for a while (a FIFO is still filling, say): look less often, so that looking
      // never costs much more than simulating.
      if (++level.tries >= 2 * kSnapshots) {
        level.tries = 0;
        level.pause = larger(2 * level.pause, state_size() / (i == 0 ? 1 : 16) + 16);
        level.skip = level.pause;
      }
    }
  }

  bool try_level(Level& level) {
    Snapshot& now = level.snapshots[level.next];
    level.next = (level.next + 1) % kSnapshots;
    if (!take(now)) return false;
    for (int back = 2; back <= kSnapshots; ++back) {
      Snapshot& old = level.snapshots[(level.next + 2 * kSnapshots - back) % kSnapshots];
      if (!old.used) break;
      if (old.signature != now.signature || old.words.size != now.words.size) continue;
      int64_t shift = 0;
      const int64_t periods = count_periods(old, now, &shift);
      if (periods <= 0) continue;
      jump(old, now, periods, shift);
      for (int i = 0; i < kLevels; ++i)
        for (int s = 0; s < kSnapshots; ++s)
          if (i == 0 || &levels[i] == &level) levels[i].snapshots[s].used = false;
      ++jumps;
      return true;
    }
    return false;
  }

  static void mix(uint64_t* hash, int64_t value) {
    *hash = (*hash ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15ull;
    *hash ^= *hash >> 29;
  }

  // The whole state as words; the signature holds what must be equal in two periodic states.
  bool take(Snapshot& s) {
    s.used = false;
    s.words.size = 0;
    s.signature = 1;
    bool ok = true;
    for (int64_t u = 0; u < net.d.unit_count; ++u) {
      Unit& unit = net.units[u];
      if (unit.since > 0) net.flush(unit);
      ok = ok && s.words.push(clocks[u].time) && s.words.push(unit.fired) &&
           s.words.push(clocks[u].started);
      mix(&s.signature, clocks[u].step);
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p) {
        ok = ok && s.words.push(net.ports[p].cursor.left);
        mix(&s.signature, net.ports[p].cursor.run);
      }
    }
    for (int64_t f = 0; f < net.d.fifo_count; ++f) {
      const Fifo& fifo = net.fifos[f];
      const Timing& t = timing[f];
      mix(&s.signature, fifo.sent - fifo.got);
      ok = ok && s.words.push(fifo.sent) && s.words.push(t.starved) && s.words.push(t.blocked);
      const int64_t first = ok ? s.words.size : 0;
      const int64_t queued = fifo.sent - fifo.got;
      const int64_t freed = fifo.depth < kUnbounded ? fifo.depth - queued : 0;
      ok = ok && s.words.resize(first + queued + freed);
      if (!ok) return false;
      int64_t* words = s.words.data + first;
      for (int64_t i = 0; i < queued; ++i) words[i] = t.visible[(fifo.got + i) & t.visible_mask];
      for (int64_t i = 0; i < freed; ++i)
        words[queued + i] = t.received_write[(fifo.got - freed + i) & t.write_mask];
    }
    s.used = ok;
    return ok;
  }

  // How often the moves between two states can be repeated (0: they are not periodic).
  int64_t count_periods(const Snapshot& old, const Snapshot& now, int64_t* shift) const {
    int64_t at = 0, periods = kUnbounded;
    bool known = false;
    for (int64_t u = 0; u < net.d.unit_count; ++u) {
      const Unit& unit = net.units[u];
      const int64_t fired = now.words[at + 1] - old.words[at + 1];
      if (fired > 0) {
        const int64_t later = now.words[at] - old.words[at];
        if (!known) *shift = later;
        known = true;
        if (later != *shift) return 0;
        if (clocks[u].step != 0 && now.words[at + 2] - old.words[at + 2] != later) return 0;
        // A firing that has begun must still be there to be ended.
        periods = smaller(periods, (unit.firings - (clocks[u].step != 0)) / fired);
      } else if (now.words[at] != old.words[at]) {
        return 0;  // moved inside a firing without ending it
      }
      at += 3;
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p, ++at) {
        const Cursor& cursor = net.ports[p].cursor;
        if (fired == 0 || cursor.constant()) continue;
        if (old.words[at] - now.words[at] == fired)
          periods = smaller(periods, (cursor.left - 1) / fired);
        else if (old.words[at] != now.words[at] || fired % cursor.period() != 0)
          return 0;
      }
      if (periods <= 0) return 0;
    }
    if (!known) return 0;
    for (int64_t f = 0; f < net.d.fifo_count; ++f) {
      const Fifo& fifo = net.fifos[f];
      const bool limited = fifo.depth < kUnbounded;
      const int64_t live = limited ? fifo.depth : fifo.sent - fifo.got;
      if (now.words[at] != old.words[at]) {
        if (limited && old.words[at] < fifo.depth) return 0;  // some slots were never used
        for (int64_t i = at + 3; i < at + 3 + live; ++i)
          if (now.words[i] - old.words[i] != *shift) return 0;
      }
      at += 3 + live;
    }
    return periods;
  }

  void jump(const Snapshot& old, const Snapshot& now, int64_t periods, int64_t shift) {
    int64_t at = 0;
    for (int64_t u = 0; u < net.d.unit_count; ++u) {
      Unit& unit = net.units[u];
      const int64_t fired = now.words[at + 1] - old.words[at + 1];
      if (fired > 0) {
        clocks[u].time += periods * shift;
        clocks[u].started += periods * shift;
        unit.firings -= periods * fired;
        unit.fired += periods * fired;
      }
      at += 3;
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p, ++at) {
        Cursor& cursor = net.ports[p].cursor;
        if (fired > 0 && !cursor.constant() && old.words[at] - now.words[at] == fired)
          cursor.left -= periods * fired;
      }
      net.refresh(unit);
    }
    for (int64_t f = 0; f < net.d.fifo_count; ++f) {
      Fifo& fifo = net.fifos[f];
      Timing& t = timing[f];
      const int64_t queued = fifo.sent - fifo.got;
      const int64_t freed = fifo.depth < kUnbounded ? fifo.depth - queued : 0;
      const int64_t moved = now.words[at] - old.words[at];
      if (moved > 0) {
        fifo.sent += periods * moved;
        fifo.got += periods * moved;
        t.starved += periods * (now.words[at + 1] - old.words[at + 1]);
        t.blocked += periods * (now.words[at + 2] - old.words[at + 2]);
        const int64_t* words = now.words.data + at + 3;
        for (int64_t i = 0; i < queued; ++i)
          t.visible[(fifo.got + i) & t.visible_mask] = words[i] + periods * shift;
        for (int64_t i = 0; i < freed; ++i)
          t.received_write[(fifo.got - freed + i) & t.write_mask] =
              words[queued + i] + periods * shift;
        skipped += periods * moved;
      }
      at += 3 + queued + freed;
    }
  }

  // ----------------------------------------------------------------------------- results
  void report(const Call& call, Status status) {
    int64_t* units = static_cast<int64_t*>(call.results[0].data);
    int64_t* fifos = static_cast<int64_t*>(call.results[1].data);
    int64_t* summary = static_cast<int64_t*>(call.results[2].data);
    int64_t elapsed = 0;
    for (int64_t u = 0; u < net.d.unit_count; ++u, units += 4) {
      const Unit& unit = net.units[u];
      elapsed = larger(elapsed, clocks[u].time);
      units[0] = clocks[u].time;
      units[1] = unit.fired;
      units[2] = unit.firings > 0 ? unit.wait_fifo : -1;
      units[3] = unit.firings > 0 ? unit.wait : 0;
    }
    for (int64_t f = 0; f < net.d.fifo_count; ++f, fifos += 4) {
      fifos[0] = net.fifos[f].sent;
      fifos[1] = net.fifos[f].got;
      fifos[2] = timing[f].starved;
      fifos[3] = timing[f].blocked;
      if (record) {
        memcpy(record_visible + record_offset[f], timing[f].visible,
               net.fifos[f].sent * sizeof(int64_t));
        memcpy(record_received + record_offset[f], timing[f].received_write,
               net.fifos[f].got * sizeof(int64_t));
      }
    }
    const int64_t words[6] = {status, elapsed, events, skipped, jumps, 0};
    memcpy(summary, words, sizeof words);
  }
};

}  // namespace stream
}  // namespace
