/**
 * Loaded into each test's process before the test (.taprc): what a test starts runs as it does for users.
 *
 * tap has every Node.js program that a test starts, with each of its threads, report the modules that it loads, for coverage that is not
 * measured here. An agent with its threads takes several times as long to start then.
 */
import processOnSpawn from 'process-on-spawn';

// after tap's own listener, which puts it there
processOnSpawn.addListener((child) => {
  child.env = Object.fromEntries(
    Object.entries(child.env).filter(([name]) => name !== 'NODE_OPTIONS' && !name.startsWith('_TAPJS_')),
  );
});
