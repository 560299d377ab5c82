// What the kernels of linear layers take, and what they do with a finished sum (sections 3 and 8).
#pragma once

#include "heads.cuh"
#include "tile.cuh"

// One matrix of a launch.
struct Part {
    u64 weights;  // ops/pack.rs
    u64 bias;     // f32 [outputs] or 0
    u32 outputs;
    u32 tile;    // the first of its tiles among those of the launch
    u32 column;  // of its first output in a row of `out`
    u32 zero;
};

// What becomes of the sums.
enum Epilogue : u32 {
    STORE,     // out = y; `checked`: not finite is a fault of the logits
    RESIDUAL,  // out += y; `checked`: the end of a layer; then, if `next` is there, a norm
    GATE_UP,   // next = silu(y of part 0) * (y of part 1); tiles of 32 outputs of both alternate
    HEADS,     // out = y, then place_head for whole heads
};

struct Linear {
    u64 x, scales;  // rows in the form that the weights ask for: i8 or f32 [rows][stride]; f32 [rows][groups]
    u64 step;       // u32: rows in use
    u64 faults;     // u32 [rows]
    u64 out;        // f32 [rows][width]
    u64 sums;       // f32 [blocks][segments][columns][outputs + 4]: of segments, where the grid splits K
    u64 counters;   // u32, zero between launches: `groups` of the epilogue, then one for each block
    Part parts[3];
    RmsNorm norm;
    Activation next;
    Heads heads;
    u32 inputs, stride, segments;
    u32 tiles;     // of all parts
    u32 warps;     // log2 of the tiles of a block; the other warps of 8 share K
    u32 span;      // segments whose sums a block holds at a time
    u32 share;     // segments of a block, where the grid splits K; else all
    u32 epilogue;
    u32 checked, rounded;
    u32 width;
    u32 groups;    // counters of the epilogue
    u32 expected;  // blocks that count themselves in at each of them
    u32 layer;
    u32 passes;    // of a kernel's columns that a block makes
    u32 zero;
};

// Which outputs a tile has.
struct Place {
    u64 weights, bias;
    u32 outputs, column;  // of the part
    u32 tile;             // of the part
};

// By choice, not by index: parameters have no address.
DEV Place choose(bool first, const Place& a, const Place& b) {
    return {first ? a.weights : b.weights, first ? a.bias : b.bias, first ? a.outputs : b.outputs, first ? a.column : b.column,
            first ? a.tile : b.tile};
}

DEV Place part_at(const Part& part, u32 tile) { return {part.weights, part.bias, part.outputs, part.column, tile}; }

template <int OUTPUTS>
DEV Place place_of(const Linear& p, u32 tile) {
    if (p.epilogue == GATE_UP) {
        const u32 unit = 32 / OUTPUTS;
        u32 of_part = tile / (2 * unit) * unit + tile % unit;
        return choose(tile / unit % 2 == 0, part_at(p.parts[0], of_part), part_at(p.parts[1], of_part));
    }
    bool second = p.parts[1].outputs && tile >= p.parts[1].tile, third = p.parts[2].outputs && tile >= p.parts[2].tile;
    Place later = choose(third, part_at(p.parts[2], tile - p.parts[2].tile), part_at(p.parts[1], tile - p.parts[1].tile));
    return choose(second, later, part_at(p.parts[0], tile));
}

// Where a tile's weights are; 0 if the tile lies past its part.
template <class F>
DEV const u8* tile_weights(const Linear& p, u32 tile) {
    if (tile >= p.tiles) return 0;
    Place place = place_of<F::OUTPUTS>(p, tile);
    if (place.tile * F::OUTPUTS >= place.outputs) return 0;
    return (const u8*)place.weights + (u64)place.tile * p.segments * F::BYTES;
}

// Takes the sum of output `output` of a tile's part for row `row`.
DEV void finish_sum(const Linear& p, const Place& part, u32 row, u32 output, float y) {
    if (part.bias) y += ((const float*)part.bias)[output];
    float* out = (float*)p.out + (u64)row * p.width + part.column + output;
    if (p.epilogue == RESIDUAL) {
        y = *out + y;
        if (p.checked) {
            bool faulty = false;
            y = layer_output(y, p.rounded, faulty);
            if (faulty) record_fault(p.faults, row, p.layer, LAYER_OUTPUT_FAULT);
        }
    } else if (p.epilogue == STORE && p.checked && !is_finite(y)) {
        record_fault(p.faults, row, p.layer, LOGITS_FAULT);
    }
    *out = y;
}

// silu(gate) * up for 32 outputs from `first`, one a lane, of row `row`; `next` gets what it wants of them, save
// groups of 256: where these are wanted the values go to `out`.
DEV void finish_gated(const Linear& p, u32 row, u32 first, const float* gates, const float* ups) {
    const Activation& next = p.next;
    u32 output = first + (threadIdx.x & 31), padded = (next.width + 255) & ~255u;
    bool inside = output < next.width;
    float v = 0.0f;
    if (inside) {
        float gate = *gates, up = *ups;
        if (p.parts[0].bias) gate += ((const float*)p.parts[0].bias)[output];
        if (p.parts[1].bias) up += ((const float*)p.parts[1].bias)[output];
        v = silu(gate) * up;
    }
    u64 at = (u64)row * padded + output;
    if (next.wide) ((float*)p.out)[(u64)row * p.width + output] = v;
    if (next.values) ((float*)next.values)[at] = v;
    if (!next.quantised) return;
    Group group;
    int q = quantise32(v, group);
    if (next.narrow) {
        ((i8*)next.narrow)[at] = (i8)q;
        if ((threadIdx.x & 31) == 0) ((float*)next.narrow_scales)[at / 32] = group.scale;
    }
    if (group.faulty && (threadIdx.x & 31) == 0) record_fault(p.faults, row, p.layer, QUANTISE_FAULT);
}
