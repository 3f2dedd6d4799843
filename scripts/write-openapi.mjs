// Writes docs/openapi.json from the routes; a test checks that it is current.
import { writeFileSync } from 'node:fs';
import { openapiText } from '../dist/src/agent/api/openapi.js';

writeFileSync(new URL('../docs/openapi.json', import.meta.url), await openapiText());
