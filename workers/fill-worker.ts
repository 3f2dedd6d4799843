/** Entry point of the fill pool: one task a guest, until nothing is outstanding. */
import { settling } from '../src/memory/settled.ts';
import { runFillTask } from '../src/memory/fill-task.ts';

export default settling(runFillTask);
