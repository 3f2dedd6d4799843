export const TAG_BYTES = 16;
export const TAG_VERSION = 1;
