// Many configurations of one stream network at once: a static schedule (the tape) is found by moving
// tokens without times, then replayed as max-plus instructions over vectors of eight configurations
// that differ in depths, latencies and intervals.
//
// A schedule that respects the smallest depth of each FIFO suits every lane, and the order of
// execution changes no time. Where that common schedule gets stuck, lanes run one by one.
#include "stream_engine.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {
namespace stream {

// Without this the compiler guards destructors against exceptions, with a symbol that objects
// of different instruction sets would share.
#define STREAM_NEVER_THROWS __attribute__((nothrow, noinline))

constexpr int kLanes = 8;
typedef int64_t Vector __attribute__((vector_size(8 * kLanes)));

TRIMTAB_INLINE Vector later(Vector a, Vector b) { return a > b ? a : b; }
TRIMTAB_INLINE Vector every(int64_t value) { return value - Vector{}; }

// A unit with one set of ports that move tokens.
struct Form {
  int32_t unit, ins, outs;
  int64_t first;  // in form_ports: inputs, then outputs
  bool single;
};

struct FormPort {
  int32_t fifo;
  int64_t count;
};

struct Entry {
  int32_t form, count;
};

struct Loop {
  int64_t begin, end, repeats;
};

struct TokenState {
  Array<int64_t> words;
  int64_t entry = -1;
};

struct Tape {
  Array<Form> forms;
  Array<FormPort> form_ports;
  Array<Entry> entries;
  Array<Loop> loops;
  Array<int64_t> longest;  // most tokens queued in each FIFO
  Array<int32_t> form_of;  // current form of each unit, -1 after a change of rates
  TokenState states[4];
  int next_state = 0;
  bool out_of_memory = false;

  bool build(Tokens& net) {
    choose_trigger(net);
    if (!longest.resize(net.d.fifo_count) || !form_of.resize(net.d.unit_count))
      return !(out_of_memory = true);
    for (int64_t f = 0; f < net.d.fifo_count; ++f) longest[f] = net.fifos[f].sent;
    for (int64_t u = 0; u < net.d.unit_count; ++u) form_of[u] = -1;
    do {
      if (!append_all(net)) return !(out_of_memory = true);
    } while (net.relax());
    return net.finished();
  }

 private:
  int32_t busiest = -1;
  int64_t bursts = 0;

  // Append whatever can run; false when memory ran out.
  bool append_all(Tokens& net) {
    int32_t u;
    while (net.next(&u)) {
      Unit& unit = net.units[u];
      for (int rounds = 0; unit.firings > 0; ++rounds) {
        if (rounds == 64) {
          net.enqueue(u);
          break;
        }
        const int64_t count = net.ready(unit);
        if (count == 0) break;
        if (!append(net, u, count)) return false;
        net.move(unit, count);
        for (int32_t o = 0; o < unit.active_out; ++o) {
          const int32_t f = net.ports[net.active[unit.first_out + o]].fifo;
          longest[f] = larger(longest[f], net.fifos[f].sent - net.fifos[f].got);
        }
        net.wake_neighbours(unit);
        if (unit.run_left == count) form_of[u] = -1;
        const uint32_t reached = net.advance(unit, count);
        if (reached != 0 || (u == busiest && ++bursts % 32 == 0)) find_loop(net);
      }
    }
    return true;
  }

  // Follow the wraps of the longest period that occurs often, else bursts of the busiest unit.
  void choose_trigger(Tokens& net) {
    Port* trigger = nullptr;
    int64_t longest_period = 0;
    int32_t most = 0;
    for (int32_t u = 0; u < net.d.unit_count; ++u) {
      const Unit& unit = net.units[u];
      if (unit.firings > net.units[most].firings) most = u;
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p) {
        const Cursor& cursor = net.ports[p].cursor;
        if (cursor.constant() || cursor.period() <= longest_period) continue;
        if (unit.firings < 4 * cursor.period()) continue;
        longest_period = cursor.period();
        trigger = &net.ports[p];
      }
    }
    if (trigger != nullptr)
      trigger->level = 0;
    else
      busiest = most;
  }

  bool append(const Tokens& net, int32_t u, int64_t count) {
    if (form_of[u] < 0) form_of[u] = find_form(net, u);
    return form_of[u] >= 0 && entries.push({form_of[u], static_cast<int32_t>(count)});
  }

  int32_t find_form(const Tokens& net, int32_t u) {
    const Unit& unit = net.units[u];
    for (int64_t i = 0; i < forms.size; ++i)
      if (forms[i].unit == u && same_form(net, unit, forms[i])) return static_cast<int32_t>(i);
    const Form form = {u, unit.active_in, unit.active_out, form_ports.size, unit.single};
    for (int32_t i = 0; i < unit.active_in + unit.active_out; ++i)
      if (!form_ports.push(form_port(net, unit, i))) return -1;
    return forms.push(form) ? static_cast<int32_t>(forms.size - 1) : -1;
  }

  static FormPort form_port(const Tokens& net, const Unit& unit, int32_t i) {
    const int32_t at = i < unit.active_in ? unit.first_in + i : unit.first_out + i - unit.active_in;
    const Port& port = net.ports[net.active[at]];
    return {port.fifo, port.cursor.count()};
  }

  bool same_form(const Tokens& net, const Unit& unit, const Form& form) const {
    if (form.ins != unit.active_in || form.outs != unit.active_out) return false;
    for (int32_t i = 0; i < form.ins + form.outs; ++i) {
      const FormPort now = form_port(net, unit, i), then = form_ports[form.first + i];
      if (now.fifo != then.fifo || now.count != then.count) return false;
    }
    return true;
  }

  void find_loop(Tokens& net) {
    TokenState& now = states[next_state];
    next_state = (next_state + 1) % 4;
    now.entry = -1;
    now.words.size = 0;
    for (int64_t u = 0; u < net.d.unit_count; ++u) {
      Unit& unit = net.units[u];
      if (unit.since > 0) {
        net.flush(unit);
        form_of[u] = -1;
      }
      if (!now.words.push(unit.fired)) return;
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p)
        if (!now.words.push(net.ports[p].cursor.run) || !now.words.push(net.ports[p].cursor.left))
          return;
    }
    for (int64_t f = 0; f < net.d.fifo_count; ++f)
      if (!now.words.push(net.fifos[f].sent) || !now.words.push(net.fifos[f].got)) return;
    now.entry = entries.size;
    for (TokenState& old : states) {
      if (&old == &now || old.entry < 0) continue;
      const int64_t repeats = count_repeats(net, old, now);
      if (repeats <= 0) continue;
      if (!loops.push({old.entry, now.entry, repeats})) return;
      skip(net, old, now, repeats);
      for (TokenState& state : states) state.entry = -1;
      return;
    }
  }

  static int64_t count_repeats(const Tokens& net, const TokenState& old, const TokenState& now) {
    int64_t at = 0, repeats = kUnbounded;
    for (int64_t u = 0; u < net.d.unit_count; ++u) {
      const Unit& unit = net.units[u];
      const int64_t fired = now.words[at] - old.words[at];
      ++at;
      if (fired > 0) repeats = smaller(repeats, unit.firings / fired);
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p, at += 2) {
        const Cursor& cursor = net.ports[p].cursor;
        if (fired == 0 || cursor.constant()) continue;
        if (now.words[at] != old.words[at]) return 0;
        if (old.words[at + 1] - now.words[at + 1] == fired)
          repeats = smaller(repeats, (cursor.left - 1) / fired);
        else if (old.words[at + 1] != now.words[at + 1] || fired % cursor.period() != 0)
          return 0;
      }
    }
    for (; at < now.words.size; at += 2)
      if (now.words[at] - old.words[at] != now.words[at + 1] - old.words[at + 1]) return 0;
    return repeats == kUnbounded ? 0 : repeats;
  }

  static void skip(Tokens& net, const TokenState& old, const TokenState& now, int64_t repeats) {
    int64_t at = 0;
    for (int64_t u = 0; u < net.d.unit_count; ++u) {
      Unit& unit = net.units[u];
      const int64_t fired = now.words[at] - old.words[at];
      unit.fired += repeats * fired;
      unit.firings -= repeats * fired;
      ++at;
      for (int32_t p = unit.first_in; p < unit.first_out + unit.outs; ++p, at += 2) {
        Cursor& cursor = net.ports[p].cursor;
        if (fired > 0 && !cursor.constant() && old.words[at + 1] - now.words[at + 1] == fired)
          cursor.left -= repeats * fired;
      }
      net.refresh(unit);
    }
    for (int64_t f = 0; f < net.d.fifo_count; ++f, at += 2) {
      net.fifos[f].sent += repeats * (now.words[at] - old.words[at]);
      net.fifos[f].got += repeats * (now.words[at + 1] - old.words[at + 1]);
    }
  }
};

struct LaneFifo {
  Vector *visible, *received;
  int64_t visible_mask, received_mask;
  int64_t sent, got;
  int64_t common_depth;  // of all lanes, or -1
  Vector depth, latency;
  int64_t send_latency, response_latency;
};

struct Lanes {
  const Tape& tape;
  Array<LaneFifo> fifos;
  Vector *time = nullptr, *interval = nullptr;
  bool atomic = true;

  explicit Lanes(const Tape& t) : tape(t) {}
  ~Lanes() {
    for (int64_t f = 0; f < fifos.size; ++f) {
      free(fifos[f].visible);
      free(fifos[f].received);
    }
    free(time);
    free(interval);
  }

  static Vector* vectors(int64_t count) {
    return static_cast<Vector*>(aligned_alloc(sizeof(Vector), larger(count, 1) * sizeof(Vector)));
  }

  STREAM_NEVER_THROWS bool start(const Description& d, const int64_t* const depth[],
                                 const int64_t* const latency[], const int64_t* const intervals[]) {
    if (!fifos.resize(d.fifo_count)) return false;
    memset(static_cast<void*>(fifos.data), 0, fifos.size * sizeof(LaneFifo));
    time = vectors(d.unit_count);
    interval = vectors(d.unit_count);
    if (time == nullptr || interval == nullptr) return false;
    for (int64_t u = 0; u < d.unit_count; ++u) {
      time[u] = every(0);
      for (int lane = 0; lane < kLanes; ++lane) interval[u][lane] = intervals[lane][u];
    }
    for (int64_t f = 0; f < d.fifo_count; ++f)
      if (!start_fifo(d, f, depth, latency)) return false;
    return true;
  }

  bool start_fifo(const Description& d, int64_t f, const int64_t* const depth[],
                  const int64_t* const latency[]) {
    LaneFifo& fifo = fifos[f];
    int64_t deepest = 0;
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t places = depth[lane][f];
      const bool limited = places >= 0 && places < d.total[f];
      fifo.depth[lane] = limited ? places : kUnbounded;
      fifo.latency[lane] = latency[lane][f];
      if (limited) deepest = larger(deepest, places);
    }
    fifo.common_depth = fifo.depth[0];
    for (int lane = 1; lane < kLanes; ++lane)
      if (fifo.depth[lane] != fifo.depth[0]) fifo.common_depth = -1;
    fifo.send_latency = d.times[3 * f + 1];
    fifo.response_latency = d.times[3 * f + 2];
    fifo.sent = d.initial[f];
    const int64_t queue = power_of_two(larger(tape.longest[f], 1));
    const int64_t history = power_of_two(larger(deepest, 1));
    fifo.visible = vectors(queue);
    fifo.received = vectors(history);
    if (fifo.visible == nullptr || fifo.received == nullptr) return false;
    for (int64_t i = 0; i < queue; ++i) fifo.visible[i] = every(0);
    for (int64_t i = 0; i < history; ++i) fifo.received[i] = every(kNever);
    fifo.visible_mask = queue - 1;
    fifo.received_mask = history - 1;
    return true;
  }

  // When the place of token n became free in each lane.
  TRIMTAB_INLINE static Vector freed(const LaneFifo& fifo, int64_t n) {
    if (fifo.common_depth == kUnbounded) return every(kNever);
    if (fifo.common_depth >= 0)
      return fifo.received[(n - fifo.common_depth) & fifo.received_mask];
    const Vector token = n - fifo.depth;
    const Vector lane = {0, 1, 2, 3, 4, 5, 6, 7};
    const Vector slot = (token & fifo.received_mask) * kLanes + lane;
    const int64_t* base = reinterpret_cast<const int64_t*>(fifo.received);
#if defined(__AVX512F__)
    const __mmask8 exists = _mm512_movepi64_mask((__m512i)~token);
    return (Vector)_mm512_mask_i64gather_epi64((__m512i)every(kNever), exists, (__m512i)slot, base,
                                               8);
#else
    Vector value;
    for (int i = 0; i < kLanes; ++i) value[i] = token[i] >= 0 ? base[slot[i]] : kNever;
    return value;
#endif
  }

  template <int I, int O, bool kAtomic>
  void fire(const Form& form, int64_t count) {
    LaneFifo* in[I > 0 ? I : 1];
    LaneFifo* out[O > 0 ? O : 1];
    const FormPort* ports = tape.form_ports.data + form.first;
    for (int i = 0; i < I; ++i) in[i] = &fifos[ports[i].fifo];
    for (int o = 0; o < O; ++o) out[o] = &fifos[ports[I + o].fifo];
    Vector now = time[form.unit];
    const Vector step = interval[form.unit];
    for (int64_t n = 0; n < count; ++n) {
#pragma GCC unroll 8
      for (int i = 0; i < I; ++i) {
        now = later(now, in[i]->visible[(in[i]->got + n) & in[i]->visible_mask]);
        in[i]->received[(in[i]->got + n) & in[i]->received_mask] = now;
      }
      const Vector started = now;
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
        now = later(now, freed(*out[o], out[o]->sent + n) + out[o]->response_latency);
        if (!kAtomic)
          out[o]->visible[(out[o]->sent + n) & out[o]->visible_mask] =
              later(started + out[o]->latency, now + out[o]->send_latency);
      }
      if (kAtomic) {
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o)
          out[o]->visible[(out[o]->sent + n) & out[o]->visible_mask] =
              later(started + out[o]->latency, now + out[o]->send_latency);
      }
      now += step;
    }
    time[form.unit] = now;
    for (int i = 0; i < I; ++i) in[i]->got += count;
    for (int o = 0; o < O; ++o) out[o]->sent += count;
  }

  void fire_any(const Form& form, int64_t count) {
    const FormPort* ports = tape.form_ports.data + form.first;
    for (int64_t n = 0; n < count; ++n) {
      Vector now = time[form.unit];
      for (int i = 0; i < form.ins; ++i)
        for (int64_t k = 0; k < ports[i].count; ++k) {
          LaneFifo& fifo = fifos[ports[i].fifo];
          now = later(now, fifo.visible[fifo.got & fifo.visible_mask]);
          fifo.received[fifo.got++ & fifo.received_mask] = now;
        }
      const Vector started = now;
      for (int pass = atomic ? 0 : 1; pass < 2; ++pass)
        for (int o = form.ins; o < form.ins + form.outs; ++o)
          for (int64_t k = 0; k < ports[o].count; ++k) {
            LaneFifo& fifo = fifos[ports[o].fifo];
            if (pass == 0 || !atomic)
              now = later(now, freed(fifo, fifo.sent + (atomic ? k : 0)) + fifo.response_latency);
            if (pass == 1)
              fifo.visible[fifo.sent++ & fifo.visible_mask] =
                  later(started + fifo.latency, now + fifo.send_latency);
          }
      time[form.unit] = now + interval[form.unit];
    }
  }

  using Fire = void (Lanes::*)(const Form&, int64_t);

  template <bool kAtomic>
  static Fire specialised(const Form& form) {
    static constexpr Fire table[4][5] = {
        {&Lanes::fire<0, 0, kAtomic>, &Lanes::fire<0, 1, kAtomic>, &Lanes::fire<0, 2, kAtomic>,
         &Lanes::fire<0, 3, kAtomic>, &Lanes::fire<0, 4, kAtomic>},
        {&Lanes::fire<1, 0, kAtomic>, &Lanes::fire<1, 1, kAtomic>, &Lanes::fire<1, 2, kAtomic>,
         &Lanes::fire<1, 3, kAtomic>, &Lanes::fire<1, 4, kAtomic>},
        {&Lanes::fire<2, 0, kAtomic>, &Lanes::fire<2, 1, kAtomic>, &Lanes::fire<2, 2, kAtomic>,
         &Lanes::fire<2, 3, kAtomic>, &Lanes::fire<2, 4, kAtomic>},
        {&Lanes::fire<3, 0, kAtomic>, &Lanes::fire<3, 1, kAtomic>, &Lanes::fire<3, 2, kAtomic>,
         &Lanes::fire<3, 3, kAtomic>, &Lanes::fire<3, 4, kAtomic>}};
    const bool listed = form.single && form.ins < 4 && form.outs < 5;
    return listed ? table[form.ins][form.outs] : &Lanes::fire_any;
  }

  STREAM_NEVER_THROWS bool run() {
    Array<Fire> fires;
    if (!fires.resize(tape.forms.size)) return false;
    for (int64_t i = 0; i < tape.forms.size; ++i)
      fires[i] = atomic ? specialised<true>(tape.forms[i]) : specialised<false>(tape.forms[i]);
    int64_t at = 0;
    for (int64_t l = 0; l < tape.loops.size; ++l) {
      const Loop& loop = tape.loops[l];
      play(fires, at, loop.end);
      for (int64_t i = 0; i < loop.repeats; ++i) play(fires, loop.begin, loop.end);
      at = loop.end;
    }
    play(fires, at, tape.entries.size);
    return true;
  }

  STREAM_NEVER_THROWS void play(const Array<Fire>& fires, int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const Entry entry = tape.entries[e];
      (this->*fires[entry.form])(tape.forms[entry.form], entry.count);
    }
  }
};

struct Sweep {
  Description d;
  int64_t configurations;
  const int64_t *depth, *latency, *interval;
  int64_t *cycles, *status;
  bool atomic, forward;

  int64_t last(int64_t group) const { return smaller(configurations, (group + 1) * kLanes) - 1; }

  // Eight configurations; returns a sentence if memory ran out.
  const char* run_group(int64_t group) const {
    const int64_t *depths[kLanes], *latencies[kLanes], *intervals[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t c = smaller(group * kLanes + lane, last(group));
      depths[lane] = depth + c * d.fifo_count;
      latencies[lane] = latency + c * d.fifo_count;
      intervals[lane] = interval + c * d.unit_count;
    }
    if (forward) return run_singly(group, depths, latencies, intervals);
    Array<int64_t> smallest;
    if (!smallest.resize(d.fifo_count)) return "not enough memory for this sweep";
    for (int64_t f = 0; f < d.fifo_count; ++f) {
      smallest[f] = -1;
      for (const int64_t* lane : depths)
        if (lane[f] >= 0 && (smallest[f] < 0 || lane[f] < smallest[f])) smallest[f] = lane[f];
    }
    Description common = d;
    common.depth = smallest.data;
    Tokens net;
    Tape tape;
    if (!net.start(common)) return "not enough memory for this sweep";
    if (!tape.build(net)) {
      if (tape.out_of_memory) return "not enough memory for the tape of this sweep";
      return run_singly(group, depths, latencies, intervals);
    }
    Lanes lanes(tape);
    lanes.atomic = atomic;
    if (!lanes.start(d, depths, latencies, intervals) || !lanes.run())
      return "not enough memory for this sweep";
    for (int64_t c = group * kLanes; c <= last(group); ++c) {
      cycles[c] = 0;
      status[c] = kFinished;
      for (int64_t u = 0; u < d.unit_count; ++u)
        cycles[c] = larger(cycles[c], lanes.time[u][c - group * kLanes]);
    }
    return nullptr;
  }

  const char* run_singly(int64_t group, const int64_t* const depths[],
                         const int64_t* const latencies[],
                         const int64_t* const intervals[]) const {
    Array<int64_t> times;
    if (!times.resize(3 * d.fifo_count)) return "not enough memory for this sweep";
    for (int64_t c = group * kLanes; c <= last(group); ++c) {
      const int lane = static_cast<int>(c - group * kLanes);
      for (int64_t f = 0; f < d.fifo_count; ++f) {
        times[3 * f] = latencies[lane][f];
        times[3 * f + 1] = d.times[3 * f + 1];
        times[3 * f + 2] = d.times[3 * f + 2];
      }
      Description one = d;
      one.depth = depths[lane];
      one.interval = intervals[lane];
      one.times = times.data;
      Engine engine;
      engine.atomic = atomic;
      engine.forward = true;
      if (!engine.start(one)) return "not enough memory for this sweep";
      status[c] = engine.run(kUnbounded);
      if (status[c] == kHopeless) return "not enough memory for this sweep";
      cycles[c] = 0;
      for (int64_t u = 0; u < d.unit_count; ++u)
        cycles[c] = larger(cycles[c], engine.clocks[u].time);
    }
    return nullptr;
  }
};

// Arguments: the network (its depths, latencies and intervals are ignored), then per configuration
// depths [c, f], latencies [c, f] and intervals [c, u]. Results: cycles [c], status [c]. With
// fast_forward, configurations run one by one and step over repetitions: better for long runs.
const char* sweep(const Call& call) {
  Sweep s;
  if (const char* problem = read_description(call, &s.d)) return problem;
  if (call.argument_count != kDescriptionArguments + 3 || call.result_count != 2)
    return "stream_sweep takes 16 arrays and fills 2";
  s.depth = static_cast<const int64_t*>(call.arguments[13].data);
  s.latency = static_cast<const int64_t*>(call.arguments[14].data);
  s.interval = static_cast<const int64_t*>(call.arguments[15].data);
  s.cycles = static_cast<int64_t*>(call.results[0].data);
  s.status = static_cast<int64_t*>(call.results[1].data);
  s.configurations = elements(call.results[0]);
  s.atomic = integer_attribute(call, "atomic", 1) != 0;
  s.forward = integer_attribute(call, "fast_forward", 0) != 0;
  const int64_t groups = ceil_div(s.configurations, kLanes);
  const char** problems = static_cast<const char**>(calloc(groups + 1, sizeof(char*)));
  if (problems == nullptr) return "not enough memory for this sweep";
  parallel(groups, [&](int64_t group) { problems[group] = s.run_group(group); });
  const char* problem = nullptr;
  for (int64_t g = 0; g < groups && problem == nullptr; ++g) problem = problems[g];
  free(problems);
  return problem;
}

}  // namespace stream
}  // namespace

TRIMTAB_EXPORT({"stream_sweep", stream::sweep})
