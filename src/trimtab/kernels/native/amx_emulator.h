// AMX tile instructions on processors without them, for tests: their traps are decoded and the
// tiles kept in memory of the thread. Correct to the bit and about a thousand times too slow.
#pragma once

namespace trimtab {

// Installs the trap handler for the process; false on other platforms than x86-64 Linux. Traps of
// other instructions go to the handler that was there before.
bool emulate_amx();

}  // namespace trimtab
