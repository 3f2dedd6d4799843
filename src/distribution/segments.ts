/**
 * How tables of many rows grow: by a segment of rows at a time, each with columns of its own. Nothing that is there is ever copied, so a table of
 * millions takes no longer for its next row than a small one.
 *
 *   row   segment: row >>> SEGMENT_BITS │ place in its columns: row & SEGMENT_MASK
 */
export const SEGMENT_BITS = 12;
export const SEGMENT_ROWS = 1 << SEGMENT_BITS;
export const SEGMENT_MASK = SEGMENT_ROWS - 1;
