/** Entry point of the fault pool: one task a guest, from its first fault to its last. */
import { settling } from '../src/memory/settled.ts';
import { runFaultTask } from '../src/memory/fault-task.ts';

export default settling(runFaultTask);
