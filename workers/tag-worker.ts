/** Entry point of a tag worker (piscina): see src/pages/tag-task.ts. */
export { tagBatch as default } from '../src/pages/tag-task.ts';
