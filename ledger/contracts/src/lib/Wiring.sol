// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {Kind} from "../IReferee.sol";

/// @title Which words a word of a trace follows from
/// @notice The tables of docs/disputes.md.
library Wiring {
    /// @notice What enters the arithmetic of a layer, beside its weights.
    /// @param hidden Width of the residual stream.
    /// @param intermediate Width of the MLP.
    /// @param heads Query heads.
    /// @param kvHeads Key and value heads.
    /// @param headDim Width of a head.
    /// @param eps Bits of what norms add to the mean square.
    /// @param scale Bits of the factor on queries.
    /// @param windowed Whether there is a sliding window.
    /// @param window Its positions.
    /// @param qkvBias Whether q, k and v have biases.
    /// @param outputBias Whether o has one.
    /// @param mlpBias Whether gate, up and down have.
    /// @param qkNorm Whether heads of queries and keys have norms.
    struct Dims {
        uint256 hidden;
        uint256 intermediate;
        uint256 heads;
        uint256 kvHeads;
        uint256 headDim;
        uint32 eps;
        uint32 scale;
        bool windowed;
        uint256 window;
        bool qkvBias;
        bool outputBias;
        bool mlpBias;
        bool qkNorm;
    }

    /// @notice Where inputs are: words of a row of the same slot; a word of the last operation of the slot before, at the
    /// word's own position; a value of a vector of weights; cosine and sine of a pair, at the word's own position.
    enum What {
        Words,
        Before,
        Vector,
        Rotation
    }

    /// @notice Some of the inputs of a word.
    /// @param what Where they are.
    /// @param operation Of the words; for a vector the tensor's number in its unit.
    /// @param position Of the words.
    /// @param from First word; index in a vector; pair of a rotation.
    /// @param count Inputs, of which a rotation is two.
    struct Part {
        What what;
        uint256 operation;
        uint256 position;
        uint256 from;
        uint256 count;
    }

    /// @notice What a word follows from.
    /// @param kind How.
    /// @param numbers Those of the kind; of a segment the first, the format, is missing.
    /// @param parts Where the inputs are, in order.
    /// @param weighted Whether it takes a segment of weights.
    /// @param tensor The weights' number in the unit.
    /// @param row Their row.
    /// @param segment Their segment of the row.
    struct Wired {
        Kind kind;
        uint32[4] numbers;
        Part[] parts;
        bool weighted;
        uint256 tensor;
        uint256 row;
        uint256 segment;
    }

    /// @notice Operations of a layer.
    uint256 internal constant OPERATIONS = 47;

    uint256 private constant NORMED = 3;
    uint256 private constant INPUT_SCALES = 4;
    uint256 private constant Q = 6;
    uint256 private constant K = 7;
    uint256 private constant V = 8;
    uint256 private constant Q_SQUARES = 9;
    uint256 private constant K_SQUARES = 13;
    uint256 private constant QUERY = 17;
    uint256 private constant KEY = 18;
    uint256 private constant VALUE = 19;
    uint256 private constant COLUMNS = 20;
    uint256 private constant SCORES = 21;
    uint256 private constant MAXIMA = 22;
    uint256 private constant WEIGHTS = 23;
    uint256 private constant SUMS = 24;
    uint256 private constant OUTPUTS = 25;
    uint256 private constant PEAKS = 26;
    uint256 private constant TOTALS = 27;
    uint256 private constant FOLDED = 28;
    uint256 private constant ATTENDED = 29;
    uint256 private constant ATTENDED_SCALES = 30;
    uint256 private constant O = 32;
    uint256 private constant RESIDUAL = 33;
    uint256 private constant MLP_SQUARES = 34;
    uint256 private constant MLP_NORMED = 37;
    uint256 private constant MLP_SCALES = 38;
    uint256 private constant GATE = 40;
    uint256 private constant UP = 41;
    uint256 private constant GATED = 42;
    uint256 private constant GATED_SCALES = 43;
    uint256 private constant DOWN = 45;
    uint256 private constant OUT = 46;

    /// Positions of a block of attention.
    uint256 private constant BLOCK = 64;
    /// Lanes of a sum of squares.
    uint256 private constant LANES = 256;
    /// Values that share a scale, and the words that they take.
    uint256 private constant GROUP = 32;
    uint256 private constant GROUP_WORDS = 8;
    /// Values of a segment, which share another scale, and the words that they take.
    uint256 private constant SEGMENT = 256;
    uint256 private constant SEGMENT_WORDS = 64;
    /// Steps of a chain.
    uint256 private constant CHAIN = 64;

    /// What a description begins with, and its length with 15 numbers of 8 bytes, of the embedding with 6.
    bytes14 private constant DESCRIPTION = "dolphin/unit/1";
    uint256 private constant LAYER_BYTES = 14 + 15 * 8;
    uint256 private constant EMBEDDING_BYTES = 14 + 6 * 8;

    /// A word that is wired.
    struct At {
        Dims dims;
        uint256 operation;
        uint256 position;
        uint256 word;
    }

    /// A product's weights (as `_tensor` counts), inputs and their scales.
    struct Product {
        bool exists;
        uint256 weight;
        uint256 inputs;
        uint256 scales;
        bool bias;
    }

    /// @notice The bytes are not such a description of a quantised model.
    error BadDescription();

    /// @notice Reads a layer's description, which the unit's root holds.
    /// @param description Its bytes.
    function parse(bytes calldata description) internal pure returns (Dims memory d) {
        _check(description, LAYER_BYTES, 1);
        d.hidden = _field(description, 1);
        d.intermediate = _field(description, 3);
        d.heads = _field(description, 4);
        d.kvHeads = _field(description, 5);
        d.headDim = _field(description, 6);
        d.eps = uint32(_field(description, 7));
        d.scale = uint32(_field(description, 8));
        d.windowed = _field(description, 9) != 0;
        d.window = _field(description, 10);
        d.qkvBias = _field(description, 11) != 0;
        d.outputBias = _field(description, 12) != 0;
        d.mlpBias = _field(description, 13) != 0;
        d.qkNorm = _field(description, 14) != 0;
    }

    /// @notice How activations are held: 0 if they are quantised.
    /// @param description A description of any part.
    function profile(bytes calldata description) internal pure returns (uint256) {
        if (description.length < 22 || bytes14(description) != DESCRIPTION) revert BadDescription();
        return _field(description, 0);
    }

    /// @notice Whether the family multiplies embeddings by a constant, and its bits.
    /// @param description The embedding's description.
    function parseEmbedding(bytes calldata description)
        internal
        pure
        returns (uint32 hasScale, uint32 scale)
    {
        _check(description, EMBEDDING_BYTES, 0);
        return (_field(description, 4) == 0 ? 0 : 1, uint32(_field(description, 5)));
    }

    /// Of a quantised model, and of the part.
    function _check(bytes calldata description, uint256 length, uint256 part) private pure {
        if (description.length != length || bytes14(description) != DESCRIPTION) revert BadDescription();
        if (_field(description, 0) != 0 || _field(description, 2) != part) revert BadDescription();
    }

    function _field(bytes calldata description, uint256 index) private pure returns (uint256) {
        uint256 from = 14 + 8 * index;
        return uint64(bytes8(description[from:from + 8]));
    }

    /// @notice Words of a row.
    /// @param d The layer.
    /// @param operation Its operation.
    /// @param position The row's position.
    function width(Dims memory d, uint256 operation, uint256 position) internal pure returns (uint256) {
        uint256 queries = d.heads * d.headDim;
        uint256 keys = d.kvHeads * d.headDim;
        if (operation <= NORMED) return _normWidth(operation, 1, d.hidden);
        if (operation < Q) return _quantisedWidth(operation - INPUT_SCALES, d.hidden);
        if (operation == Q) return queries * _segments(d.hidden);
        if (operation <= V) return keys * _segments(d.hidden);
        if (operation < QUERY) {
            if (!d.qkNorm) return 0;
            if (operation < K_SQUARES) return _normWidth(operation - Q_SQUARES, d.heads, d.headDim);
            return _normWidth(operation - K_SQUARES, d.kvHeads, d.headDim);
        }
        if (operation == QUERY || operation == ATTENDED) return queries;
        if (operation <= VALUE) return keys;
        if (operation == COLUMNS) return keys * BLOCK;
        if (operation < ATTENDED) return _attentionWidth(d, operation, position);
        if (operation < O) return _quantisedWidth(operation - ATTENDED_SCALES, queries);
        if (operation == O) return d.hidden * _segments(queries);
        if (operation == RESIDUAL || operation == OUT) return d.hidden;
        if (operation <= MLP_NORMED) return _normWidth(operation - MLP_SQUARES, 1, d.hidden);
        if (operation < GATE) return _quantisedWidth(operation - MLP_SCALES, d.hidden);
        if (operation <= UP) return d.intermediate * _segments(d.hidden);
        if (operation == GATED) return d.intermediate;
        if (operation < DOWN) return _quantisedWidth(operation - GATED_SCALES, d.intermediate);
        return operation == DOWN ? d.hidden * _segments(d.intermediate) : 0;
    }

    /// @notice Words of the widest row, as if there were no window.
    /// @param d The layer.
    /// @param positions Positions of the trace, at least one.
    function widest(Dims memory d, uint256 positions) internal pure returns (uint256 most) {
        bool windowed = d.windowed;
        d.windowed = false;
        for (uint256 operation = 0; operation < OPERATIONS; ++operation) {
            most = Math.max(most, width(d, operation, positions - 1));
        }
        d.windowed = windowed;
    }

    /// @notice What a word of a layer follows from.
    /// @param d The layer.
    /// @param operation Its operation.
    /// @param position The word's position.
    /// @param word Its number in its row.
    /// @param wide Of a product: whether its matrix has super-blocks.
    function wire(Dims memory d, uint256 operation, uint256 position, uint256 word, bool wide)
        internal
        pure
        returns (Wired memory)
    {
        At memory a = At(d, operation, position, word);
        if (word >= width(d, operation, position)) return _wired(Kind.Zero, _none());
        if (_product(d, operation).exists) return _segment(a, wide);
        if (operation <= NORMED) return _norm(a, 0, d.hidden, 0);
        if (operation < Q) return _quantised(a, INPUT_SCALES, NORMED, d.hidden);
        if (operation < K_SQUARES) return _norm(a, Q_SQUARES, d.headDim, 4);
        if (operation < QUERY) return _norm(a, K_SQUARES, d.headDim, 5);
        if (operation <= COLUMNS) return _projected(a);
        if (operation <= OUTPUTS) return _attention(a);
        if (operation <= ATTENDED) return _folding(a);
        if (operation < O) return _quantised(a, ATTENDED_SCALES, ATTENDED, d.heads * d.headDim);
        if (operation == RESIDUAL) return _wired(Kind.Add, _two(_before(word), _value(a, O, word)));
        if (operation <= MLP_NORMED) return _norm(a, MLP_SQUARES, d.hidden, 7);
        if (operation < GATE) return _quantised(a, MLP_SCALES, MLP_NORMED, d.hidden);
        if (operation == GATED) {
            return _wired(Kind.Gate, _two(_value(a, GATE, word), _value(a, UP, word)));
        }
        if (operation < DOWN) return _quantised(a, GATED_SCALES, GATED, d.intermediate);
        return _wired(Kind.Out, _two(_value(a, RESIDUAL, word), _value(a, DOWN, word)));
    }

    /// Segments of a row of `n` values.
    function _segments(uint256 n) private pure returns (uint256) {
        return Math.ceilDiv(n, SEGMENT);
    }

    /// Lanes of the first level of a tree over `n` values: the least power of two that holds them, at most 256.
    function _treeLanes(uint256 n) private pure returns (uint256 lanes) {
        lanes = 1;
        while (lanes < n && lanes < LANES) lanes *= 2;
    }

    function _normWidth(uint256 part, uint256 groups, uint256 n) private pure returns (uint256) {
        if (part == 1) return groups * (_treeLanes(n) - 1);
        return part == 2 ? groups : groups * n;
    }

    function _quantisedWidth(uint256 part, uint256 n) private pure returns (uint256) {
        (uint256 narrow, uint256 wide) = (Math.ceilDiv(n, GROUP), _segments(n));
        return part == 0 ? narrow + wide : narrow * GROUP_WORDS + wide * SEGMENT_WORDS;
    }

    function _attentionWidth(Dims memory d, uint256 operation, uint256 position)
        private
        pure
        returns (uint256)
    {
        if (operation == SCORES) {
            return d.heads * _visible(d, position) * Math.ceilDiv(d.headDim, CHAIN);
        }
        if (operation == WEIGHTS) return d.heads * _visible(d, position);
        uint256 blocks = d.heads * _blocks(d, position);
        return operation == OUTPUTS || operation == FOLDED ? blocks * d.headDim : blocks;
    }

    /// The first visible position.
    function _first(Dims memory d, uint256 position) private pure returns (uint256) {
        if (!d.windowed || position + 1 <= d.window) return 0;
        return position + 1 - d.window;
    }

    function _visible(Dims memory d, uint256 position) private pure returns (uint256) {
        return position + 1 - _first(d, position);
    }

    function _blocks(Dims memory d, uint256 position) private pure returns (uint256) {
        return position / BLOCK - _first(d, position) / BLOCK + 1;
    }

    /// Number in its unit of attention norm, q, k, v, query norm, key norm, o, mlp norm, gate, up, down (0 to 10). A
    /// bias is the one after its matrix; the unit's description is number 0.
    function _tensor(Dims memory d, uint256 weight) private pure returns (uint256) {
        uint256 qkv = d.qkvBias ? 2 : 1;
        if (weight == 0) return 1;
        if (weight <= 3) return 2 + (weight - 1) * qkv;
        if (weight <= 5) return 2 + 3 * qkv + (weight - 4);
        uint256 o = 2 + 3 * qkv + (d.qkNorm ? 2 : 0);
        if (weight == 6) return o;
        uint256 norm = o + (d.outputBias ? 2 : 1);
        return weight == 7 ? norm : norm + 1 + (weight - 8) * (d.mlpBias ? 2 : 1);
    }

    function _product(Dims memory d, uint256 operation) private pure returns (Product memory) {
        if (operation >= Q && operation <= V) {
            return Product(true, operation - Q + 1, d.hidden, INPUT_SCALES, d.qkvBias);
        }
        if (operation == O) return Product(true, 6, d.heads * d.headDim, ATTENDED_SCALES, d.outputBias);
        if (operation == GATE || operation == UP) {
            return Product(true, operation - GATE + 8, d.hidden, MLP_SCALES, d.mlpBias);
        }
        if (operation == DOWN) return Product(true, 10, d.intermediate, GATED_SCALES, d.mlpBias);
        return Product(false, 0, 0, 0, false);
    }

    /// A norm of groups of `n` values whose squares are operation `base`.
    function _norm(At memory a, uint256 base, uint256 n, uint256 weight)
        private
        pure
        returns (Wired memory w)
    {
        uint256 part = a.operation - base;
        uint256 word = a.word;
        if (part == 0) {
            Part memory x = _normed(a, base, word);
            bool isFirst = word % n < LANES;
            return _wired(Kind.Square, isFirst ? _one(x) : _two(x, _word(a, base, word - LANES)));
        }
        if (part == 1) return _halving(a, base, n);
        if (part == 2) {
            uint256 lanes = _treeLanes(n);
            Part memory last =
                lanes == 1 ? _word(a, base, word) : _word(a, base + 1, (word + 1) * (lanes - 1) - 1);
            w = _wired(Kind.Rms, _one(last));
            (w.numbers[0], w.numbers[1]) = (uint32(n), a.dims.eps);
            return w;
        }
        Part memory factor = Part(What.Vector, _tensor(a.dims, weight), 0, word % n, 1);
        return _wired(Kind.Scale, _three(_normed(a, base, word), _word(a, base + 2, word / n), factor));
    }

    /// Value `index` of what a norm is of.
    function _normed(At memory a, uint256 base, uint256 index) private pure returns (Part memory) {
        if (base == 0) return _before(index);
        if (base == MLP_SQUARES) return _value(a, RESIDUAL, index);
        return _value(a, base == Q_SQUARES ? Q : K, index);
    }

    /// A word of the halving tree over the lanes of squares of `n` values.
    function _halving(At memory a, uint256 base, uint256 n) private pure returns (Wired memory) {
        uint256 lanes = _treeLanes(n);
        uint256 group = a.word / (lanes - 1);
        uint256 lane = a.word % (lanes - 1);
        uint256 half = lanes / 2;
        uint256 below = 0;
        while (lane >= half) {
            below = group * (lanes - 1) + lanes - 2 * half;
            lane -= half;
            half /= 2;
        }
        if (half < lanes / 2) {
            Part memory left = _word(a, base + 1, below + lane);
            return _wired(Kind.Add, _two(left, _word(a, base + 1, below + lane + half)));
        }
        Part memory square = _word(a, base, group * n + _lastOfLane(n, lane));
        if (lane + half >= n) return _wired(Kind.Copy, _one(square));
        return _wired(Kind.Add, _two(square, _word(a, base, group * n + _lastOfLane(n, lane + half))));
    }

    /// The last of `n` values that is in a lane.
    function _lastOfLane(uint256 n, uint256 lane) private pure returns (uint256) {
        return lane + (n - 1 - lane) / LANES * LANES;
    }

    /// A word of a row of `n` values that is quantised twice: by groups of 32, then by segments.
    function _quantised(At memory a, uint256 scales, uint256 source, uint256 n)
        private
        pure
        returns (Wired memory)
    {
        (uint256 word, uint256 narrow) = (a.word, Math.ceilDiv(n, GROUP));
        if (a.operation == scales) {
            uint256 size = word < narrow ? GROUP : SEGMENT;
            uint256 from = word < narrow ? word * GROUP : (word - narrow) * SEGMENT;
            return _wired(Kind.GroupScale, _one(_words(a, source, from, Math.min(size, n - from))));
        }
        uint256 scale = word / GROUP_WORDS;
        if (scale >= narrow) {
            word -= narrow * GROUP_WORDS;
            scale = narrow + word / SEGMENT_WORDS;
        }
        Part memory first = _word(a, scales, scale);
        if (4 * word >= n) return _wired(Kind.GroupQuants, _one(first));
        Part memory values = _words(a, source, 4 * word, Math.min(4, n - 4 * word));
        return _wired(Kind.GroupQuants, _two(first, values));
    }

    /// A word of a product.
    function _segment(At memory a, bool wide) private pure returns (Wired memory w) {
        Product memory product = _product(a.dims, a.operation);
        uint256 inRow = _segments(product.inputs);
        w.kind = Kind.Segment;
        w.weighted = true;
        w.tensor = _tensor(a.dims, product.weight);
        w.row = a.word / inRow;
        w.segment = a.word % inRow;
        uint256 narrow = Math.ceilDiv(product.inputs, GROUP);
        uint256 groups = wide ? 1 : Math.min(narrow - GROUP_WORDS * w.segment, SEGMENT / GROUP);
        bool isFirst = w.segment == 0;
        bool biased = product.bias && w.segment + 1 == inRow;
        w.numbers = [0, uint32(groups), isFirst ? 0 : 1, biased ? 1 : 0];
        w.parts = new Part[](2 + (isFirst ? 0 : 1) + (biased ? 1 : 0));
        uint256 quants = SEGMENT_WORDS * w.segment + (wide ? GROUP_WORDS * narrow : 0);
        w.parts[0] = _words(a, product.scales + 1, quants, groups * (wide ? SEGMENT_WORDS : GROUP_WORDS));
        w.parts[1] = _words(a, product.scales, wide ? narrow + w.segment : 8 * w.segment, groups);
        if (!isFirst) w.parts[2] = _word(a, a.operation, a.word - 1);
        if (biased) w.parts[w.parts.length - 1] = Part(What.Vector, w.tensor + 1, 0, w.row, 1);
    }

    /// Queries, keys and values, ready for attention.
    function _projected(At memory a) private pure returns (Wired memory w) {
        Dims memory d = a.dims;
        if (a.operation == VALUE) return _wired(Kind.Half, _one(_value(a, V, a.word)));
        if (a.operation == COLUMNS) {
            uint256 position = a.position / BLOCK * BLOCK + a.word % BLOCK;
            if (position > a.position) return _wired(Kind.Zero, _none());
            return _wired(Kind.Copy, _one(Part(What.Words, VALUE, position, a.word / BLOCK, 1)));
        }
        bool isQuery = a.operation == QUERY;
        uint256 source = isQuery ? Q : K;
        if (d.qkNorm) source = (isQuery ? Q_SQUARES : K_SQUARES) + 3;
        uint256 pairs = d.headDim / 2;
        uint256 which = a.word % d.headDim / pairs;
        uint256 first = a.word - which * pairs;
        Part memory rotation = Part(What.Rotation, 0, a.position, a.word % pairs, 2);
        w = _wired(
            isQuery ? Kind.Query : Kind.Key,
            _three(_value(a, source, first), _value(a, source, first + pairs), rotation)
        );
        (w.numbers[0], w.numbers[1]) = (uint32(which), d.scale);
    }

    /// First visible key of block number `number`, counted among the visible ones, and how many there are.
    function _block(At memory a, uint256 number) private pure returns (uint256, uint256) {
        uint256 first = _first(a.dims, a.position);
        uint256 start = Math.max(first, (first / BLOCK + number) * BLOCK);
        uint256 end = Math.min((start / BLOCK + 1) * BLOCK, a.position + 1);
        return (start - first, end - start);
    }

    function _attention(At memory a) private pure returns (Wired memory w) {
        if (a.operation == SCORES) return _score(a);
        if (a.operation == WEIGHTS) return _weight(a);
        if (a.operation == OUTPUTS) return _output(a);
        // Of a head's visible keys in one block: the largest score, or the sum of weights.
        uint256 head = a.word / _blocks(a.dims, a.position);
        (uint256 from, uint256 count) = _block(a, a.word % _blocks(a.dims, a.position));
        if (a.operation == MAXIMA) {
            return _wired(Kind.Max, _one(_words(a, SCORES, _scores(a, head) + from, count)));
        }
        uint256 weights = head * _visible(a.dims, a.position) + from;
        w = _wired(Kind.Tree, _one(_words(a, WEIGHTS, weights, count)));
        w.numbers[0] = uint32((_first(a.dims, a.position) + from) % BLOCK);
    }

    function _weight(At memory a) private pure returns (Wired memory) {
        uint256 visible = _visible(a.dims, a.position);
        (uint256 head, uint256 key) = (a.word / visible, a.word % visible);
        uint256 first = _first(a.dims, a.position);
        uint256 number = (first + key) / BLOCK - first / BLOCK;
        Part memory maximum = _word(a, MAXIMA, head * _blocks(a.dims, a.position) + number);
        return _wired(Kind.Weight, _two(_word(a, SCORES, _scores(a, head) + key), maximum));
    }

    /// The scores of a head, which are in its last part.
    function _scores(At memory a, uint256 head) private pure returns (uint256) {
        uint256 chains = Math.ceilDiv(a.dims.headDim, CHAIN);
        return (head * chains + chains - 1) * _visible(a.dims, a.position);
    }

    /// Part of a score: 64 dimensions of a head.
    function _score(At memory a) private pure returns (Wired memory w) {
        uint256 visible = _visible(a.dims, a.position);
        uint256 chains = Math.ceilDiv(a.dims.headDim, CHAIN);
        uint256 head = a.word / visible / chains;
        uint256 from = a.word / visible % chains * CHAIN;
        uint256 count = Math.min(CHAIN, a.dims.headDim - from);
        Part memory query = _words(a, QUERY, head * a.dims.headDim + from, count);
        Part memory key = _words(a, KEY, _kvHead(a.dims, head) * a.dims.headDim + from, count);
        key.position = _first(a.dims, a.position) + a.word % visible;
        if (from == 0) {
            w = _wired(Kind.Chain, _two(query, key));
        } else {
            w = _wired(Kind.Chain, _three(_word(a, SCORES, a.word - visible), query, key));
            w.numbers[1] = 1;
        }
        w.numbers[0] = uint32(count);
    }

    function _kvHead(Dims memory d, uint256 head) private pure returns (uint256) {
        return head / (d.heads / d.kvHeads);
    }

    /// What a block adds to one dimension of a head.
    function _output(At memory a) private pure returns (Wired memory w) {
        Dims memory d = a.dims;
        uint256 blocks = _blocks(d, a.position);
        uint256 head = a.word / d.headDim / blocks;
        (uint256 key, uint256 count) = _block(a, a.word / d.headDim % blocks);
        Part memory weights = _words(a, WEIGHTS, head * _visible(d, a.position) + key, count);
        uint256 start = _first(d, a.position) + key;
        uint256 from = (_kvHead(d, head) * d.headDim + a.word % d.headDim) * BLOCK + start % BLOCK;
        Part memory column = _words(a, COLUMNS, from, count);
        column.position = Math.min(a.position, start / BLOCK * BLOCK + BLOCK - 1);
        w = _wired(Kind.Chain, _two(weights, column));
        w.numbers[0] = uint32(count);
    }

    /// What is known after some blocks, and the output.
    function _folding(At memory a) private pure returns (Wired memory w) {
        uint256 word = a.word;
        uint256 headDim = a.dims.headDim;
        uint256 blocks = _blocks(a.dims, a.position);
        if (a.operation == ATTENDED) {
            uint256 last = (word / headDim + 1) * blocks - 1;
            return _wired(
                Kind.Divide, _two(_word(a, FOLDED, last * headDim + word % headDim), _word(a, TOTALS, last))
            );
        }
        uint256 source = a.operation == PEAKS ? MAXIMA : a.operation == TOTALS ? SUMS : OUTPUTS;
        uint256 step = a.operation == FOLDED ? headDim : 1;
        // Of all heads.
        uint256 number = word / step;
        if (number % blocks == 0) return _wired(Kind.Copy, _one(_word(a, source, word)));
        if (a.operation == PEAKS) {
            return _wired(Kind.Max, _two(_word(a, PEAKS, word - 1), _word(a, source, word)));
        }
        w = _wired(Kind.Fold, new Part[](5));
        w.parts[0] = _word(a, source, word);
        w.parts[1] = _word(a, MAXIMA, number);
        w.parts[2] = _word(a, PEAKS, number);
        w.parts[3] = _word(a, PEAKS, number - 1);
        w.parts[4] = _word(a, a.operation, word - step);
    }

    /// Value `index` of an operation: of a product the sum after the last segment.
    function _value(At memory a, uint256 operation, uint256 index) private pure returns (Part memory) {
        Product memory product = _product(a.dims, operation);
        return _word(a, operation, product.exists ? (index + 1) * _segments(product.inputs) - 1 : index);
    }

    function _words(At memory a, uint256 operation, uint256 from, uint256 count)
        private
        pure
        returns (Part memory)
    {
        return Part(What.Words, operation, a.position, from, count);
    }

    function _word(At memory a, uint256 operation, uint256 word) private pure returns (Part memory) {
        return _words(a, operation, word, 1);
    }

    function _before(uint256 word) private pure returns (Part memory) {
        return Part(What.Before, 0, 0, word, 1);
    }

    function _wired(Kind kind, Part[] memory parts) private pure returns (Wired memory w) {
        (w.kind, w.parts) = (kind, parts);
    }

    function _none() private pure returns (Part[] memory) {
        return new Part[](0);
    }

    function _one(Part memory a) private pure returns (Part[] memory parts) {
        parts = new Part[](1);
        parts[0] = a;
    }

    function _two(Part memory a, Part memory b) private pure returns (Part[] memory parts) {
        parts = new Part[](2);
        (parts[0], parts[1]) = (a, b);
    }

    function _three(Part memory a, Part memory b, Part memory c) private pure returns (Part[] memory parts) {
        parts = new Part[](3);
        (parts[0], parts[1], parts[2]) = (a, b, c);
    }
}
