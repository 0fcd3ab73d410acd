// Opens a model by Netron's own loader: node netron_nodes.mjs FOLDER FILE prints its nodes as JSON.
// FOLDER: the files of Netron's Python package, with a package.json that says that they are modules.
import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, file] = process.argv.slice(2);
const load = (name) => import(pathToFileURL(join(folder, name)));
globalThis.navigator ??= { userAgent: '' };
const view = await load('view.js');
const base = await load('base.js');

const host = {
    require: (id) => load(`${id}.js`),
    asset: async (name) => readFileSync(join(folder, name), 'utf-8'),
    environment: () => null,
    event: () => {},
    exception: (error) => { throw error; },
};
const context = {
    ...host,
    identifier: basename(file),
    entries: new Map(),
    stream: new base.BinaryStream(new Uint8Array(readFileSync(file))),
    fetch: async (name) => { throw new Error(`${name} is not asked for`); },
    error: (error) => { throw error; },
};

const model = await new view.ModelFactoryService(host).open(context);
const nodes = model.modules[0].nodes.map((node) => ({
    name: node.name, type: node.type.name, domain: node.type.module ?? '',
    weights: node.inputs.flatMap((input) => input.value).filter((value) => value.initializer).map((value) => value.name),
}));
console.log(JSON.stringify({ format: model.format, functions: (model.functions ?? []).map((f) => f.name), nodes }));
