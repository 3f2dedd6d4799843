#!/usr/bin/env node
/** Entry point of `pagetide`. */
import { run } from './program.ts';

// `pagetide … | head` is no failure worth a stack
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit(1);
});

// the exit code is set and not forced, so that all output is written and nothing left open goes unnoticed
process.exitCode = await run(process.argv.slice(2));
