// Running one stream network with the generic engine, and growing its FIFOs until it completes.
#include "stream_engine.h"

namespace {
namespace stream {

// Arguments: the network (13 arrays), record offsets. Results: units [u, 4] (time, firings, FIFO
// waited for, kind of wait), FIFOs [f, 4] (sent, received, starved cycles, blocked cycles), summary
// [6] (status, elapsed, events, events skipped, jumps, 0), visible and receive times if recorded.
const char* simulate(const Call& call) {
  Description d;
  if (const char* problem = read_description(call, &d)) return problem;
  if (call.argument_count != kDescriptionArguments + 1 || call.result_count != 5)
    return "stream_simulate takes 14 arrays and fills 5";
  Engine engine;
  engine.atomic = integer_attribute(call, "atomic", 1) != 0;
  engine.record = integer_attribute(call, "record", 0) != 0;
  engine.forward = integer_attribute(call, "fast_forward", 0) != 0 && !engine.record;
  engine.record_offset = static_cast<const int64_t*>(call.arguments[13].data);
  engine.record_visible = static_cast<int64_t*>(call.results[3].data);
  engine.record_received = static_cast<int64_t*>(call.results[4].data);
  if (!engine.start(d)) return "not enough memory for this stream network";
  const Status status = engine.run(integer_attribute(call, "event_limit", kUnbounded));
  if (status == kHopeless) return "not enough memory for the tokens in this stream network";
  engine.report(call, status);
  return nullptr;
}

// ------------------------------------------------------------------------------------- growth
// The cheapest full FIFO of a cycle of waiting units, or -1.
inline int32_t fifo_to_grow(const Tokens& net, const int64_t* cost, Array<int32_t>& mark) {
  for (int64_t u = 0; u < net.d.unit_count; ++u) mark[u] = -1;
  int32_t best = -1;
  for (int32_t origin = 0; origin < net.d.unit_count; ++origin) {
    int32_t u = origin;
    while (mark[u] < 0 && net.units[u].firings > 0) {
      mark[u] = origin;
      u = net.blocker(net.units[u]);
    }
    if (net.units[u].firings <= 0 || mark[u] != origin) continue;
    const int32_t entry = u;
    do {
      const Unit& unit = net.units[u];
      const int32_t f = unit.wait_fifo;
      if (unit.wait == kFull && cost[f] >= 0 && (best < 0 || cost[f] < cost[best])) best = f;
      u = net.blocker(unit);
    } while (u != entry);
    if (best >= 0) return best;
  }
  return best;
}

// Arguments: the network, cost per place of each FIFO (negative: may not grow). Results: depths,
// summary [6] (status, places added, firings). Depths grow by one place of one FIFO of a waiting
// cycle at a time; since the state of a deadlock does not depend on the order of execution, the
// result is the smallest depth of a FIFO that grows alone.
const char* grow(const Call& call) {
  Description d;
  if (const char* problem = read_description(call, &d)) return problem;
  if (call.argument_count != kDescriptionArguments + 1 || call.result_count != 2)
    return "stream_grow takes 14 arrays and fills 2";
  const int64_t* cost = static_cast<const int64_t*>(call.arguments[13].data);
  const int64_t limit = integer_attribute(call, "event_limit", kUnbounded);
  Tokens net;
  Array<int32_t> mark;
  if (!net.start(d) || !mark.resize(d.unit_count)) return "not enough memory for this network";
  int64_t added = 0, work = 0;
  Status status = kFinished;
  while (status == kFinished) {
    int32_t u;
    while (net.next(&u)) {
      Unit& unit = net.units[u];
      int64_t count = 0;
      while (unit.firings > 0 && (count = net.ready(unit)) > 0) {
        net.move(unit, count);
        net.wake_neighbours(unit);
        net.advance(unit, count);
        work += count;
      }
      if (work > limit) {
        status = kLimit;
        break;
      }
    }
    if (status != kFinished || net.finished()) break;
    if (net.relax()) continue;
    const int32_t f = fifo_to_grow(net, cost, mark);
    if (f < 0) {
      status = kDeadlock;
      break;
    }
    net.fifos[f].limit = ++net.fifos[f].depth;
    ++added;
    net.wake(net.fifos[f].producer, kFull, f);
  }
  int64_t* depths = static_cast<int64_t*>(call.results[0].data);
  for (int64_t f = 0; f < d.fifo_count; ++f)
    depths[f] = net.fifos[f].depth == kUnbounded ? d.depth[f] : net.fifos[f].depth;
  const int64_t words[6] = {status, added, work, 0, 0, 0};
  memcpy(call.results[1].data, words, sizeof words);
  return nullptr;
}

}  // namespace stream
}  // namespace

TRIMTAB_EXPORT({"stream_simulate", stream::simulate}, {"stream_grow", stream::grow})
