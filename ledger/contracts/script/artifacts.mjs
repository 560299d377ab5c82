#!/usr/bin/env node
// Keeps ../artifacts: of each contract that clients use, ABI and creation code as forge built them, in one
// line of JSON. `write` writes the files; `check` compares them byte for byte.
import fs from 'node:fs';
import path from 'node:path';

const CONTRACTS = [
    'AccessManager',
    'AuditManager',
    'AuditorSet',
    'Beacon',
    'DisputeGame',
    'Int8Referee',
    'ModelRegistry',
    'NodeRegistry',
    'PODToken',
    'PodGovernor',
    'RewardDistributor',
    'SessionEscrow',
    'SoftFloatHarness',
    'StakeManager',
    'TimelockController',
    'TraceJudge',
    'VoucherCollector',
];

const project = path.join(import.meta.dirname, '..');
const target = path.join(project, '..', 'artifacts');
const mode = process.argv[2];
if (mode !== 'write' && mode !== 'check') {
    console.error('usage: node script/artifacts.mjs write|check');
    process.exit(2);
}

function artifact(contractName) {
    const built = path.join(project, 'out', `${contractName}.sol`, `${contractName}.json`);
    const { abi, bytecode } = JSON.parse(fs.readFileSync(built, 'utf8'));
    if (Object.keys(bytecode.linkReferences).length > 0) throw new Error(`${contractName} needs linking`);
    return JSON.stringify({ contractName, abi, bytecode: bytecode.object }) + '\n';
}

fs.mkdirSync(target, { recursive: true });
const wanted = new Map(CONTRACTS.map((name) => [`${name}.json`, artifact(name)]));
let stale = fs.readdirSync(target).filter((file) => !wanted.has(file)).map((file) => `${file}: of no contract`);
for (const [file, text] of wanted) {
    const place = path.join(target, file);
    if (mode === 'write') fs.writeFileSync(place, text);
    else if (!fs.existsSync(place) || fs.readFileSync(place, 'utf8') !== text) stale.push(`${file}: differs`);
}
for (const line of stale) console.error(line);
if (stale.length > 0) console.error('run: node script/artifacts.mjs write');
process.exit(stale.length > 0 ? 1 : 0);
