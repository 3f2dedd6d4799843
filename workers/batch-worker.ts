/** Entry point of a batch worker (piscina): see src/transport/batch-task.ts. */
import { move, transferableSymbol, valueSymbol } from 'piscina';
import { makeBatch, type BatchResult, type BatchTask } from '../src/transport/batch-task.ts';

export default function batch(task: BatchTask): BatchResult {
  const result = makeBatch(task);
  if ('error' in result) return result;
  // the frame's memory is handed over, not copied; piscina unwraps the value before it sends it
  const moved = move({ [transferableSymbol]: result.frame.buffer, [valueSymbol]: result });
  return moved as unknown as BatchResult;
}
