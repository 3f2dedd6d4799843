/** Entry point of the distribution worker (piscina): see src/distribution/bring-task.ts. */
export { bringPages as default } from '../src/distribution/bring-task.ts';
