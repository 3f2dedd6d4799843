/** The guest of `hit-loop real`: touches every page of an arena, one after the other. */
import { workerData } from 'node:worker_threads';
import { native } from '../../src/memory/native.ts';

const { arena, frames } = workerData as { arena: number; frames: number };
const memory = native().arenaView(arena);
let sum = 0;
for (let frame = 0; frame < frames; frame++) sum += memory[frame * 4096]!;
if (sum !== 0) throw new Error('the memory file has nothing but zeros');
