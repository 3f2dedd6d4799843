/** Plots as files: a Vega-Lite description becomes SVG, and that PNG, the same on every machine. */
import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { Resvg } from '@resvg/resvg-js';
import { Error as ERRORS, logger, parse, View } from 'vega';
import { compile, type TopLevelSpec } from 'vega-lite';

export type { TopLevelSpec };

const FONT = 'DejaVu Sans';
/** Pixels of the PNG for one of the SVG: sharp on screens of high density. */
const ZOOM = 2;

/** Text of readable size, in a font that is here whatever the machine has. */
const CONFIG = {
  font: FONT,
  background: 'white',
  padding: 12,
  title: { fontSize: 15, anchor: 'start' as const, subtitleFontSize: 12, subtitleColor: '#555' },
  axis: { labelFontSize: 12, titleFontSize: 13, titleFontWeight: 'normal' as const, gridColor: '#e4e4e4' },
  legend: { labelFontSize: 12, titleFontSize: 13, titleFontWeight: 'normal' as const },
  header: { labelFontSize: 12, titleFontSize: 13, titleFontWeight: 'normal' as const },
};

/** Of 4 colours that people who see few can tell apart (Okabe and Ito), and of grey. */
export const COLOURS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#999999'];

export async function drawSvg(spec: TopLevelSpec): Promise<string> {
  const { config } = spec as { config?: object };
  const whole = { ...spec, config: { ...CONFIG, ...config } } as TopLevelSpec;
  const view = new View(parse(compile(whole, { logger: logger(ERRORS) }).spec), { renderer: 'none' });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}

export function svgToPng(svg: string): Buffer {
  const require = createRequire(import.meta.url);
  const fonts = ['DejaVuSans.ttf', 'DejaVuSans-Bold.ttf'];
  const fontFiles = fonts.map((file) => require.resolve(`dejavu-fonts-ttf/ttf/${file}`));
  const font = { fontFiles, loadSystemFonts: false, defaultFontFamily: FONT, sansSerifFamily: FONT };
  return new Resvg(svg, { font, fitTo: { mode: 'zoom', value: ZOOM } }).render().asPng();
}

/** Writes STEM-NAME.svg and STEM-NAME.png of each; returns the paths. */
export async function writePlots(stem: string, plots: Readonly<Record<string, TopLevelSpec>>): Promise<string[]> {
  const paths: string[] = [];
  for (const [name, spec] of Object.entries(plots)) {
    const svg = await drawSvg(spec);
    const path = `${stem}-${name}`;
    writeFileSync(`${path}.svg`, svg);
    writeFileSync(`${path}.png`, svgToPng(svg));
    paths.push(`${path}.svg`, `${path}.png`);
  }
  return paths;
}

/** Width and height of a PNG, pixels. */
export function pngSize(path: string): { width: number; height: number } {
  const header = readFileSync(path).subarray(0, 24);
  return { width: header.readUInt32BE(16), height: header.readUInt32BE(20) };
}
