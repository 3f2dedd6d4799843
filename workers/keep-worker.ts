/** Entry point of the keep worker (piscina): see src/pages/keep-task.ts. */
export { keepPages as default } from '../src/pages/keep-task.ts';
