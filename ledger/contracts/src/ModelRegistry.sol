// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {Merkle} from "./lib/Merkle.sol";

/// @title Models
/// @notice What a model hash in a plan stands for: roots of the weights, tokenizer, position encoding and
/// version of the arithmetic. A model's contents make its hash, so an entry cannot change; it can be retired,
/// which asks gateways to make no new plans with it and changes nothing for a session that runs.
contract ModelRegistry is AccessManaged {
    /// @notice A model's contents.
    /// @param numerics Version of the arithmetic, and with it of weight and KV formats.
    /// @param tokenizer Hash of the tokenizer.
    /// @param rope Hash of the position encoding's parameters.
    /// @param layers Roots of the weights: embedding, each layer in order, head with final norm.
    struct Model {
        uint32 numerics;
        bytes32 tokenizer;
        bytes32 rope;
        bytes32[] layers;
    }

    /// @notice What is kept of a model.
    /// @param numerics Version of the arithmetic.
    /// @param layers Number of roots of weights.
    /// @param registeredAt When it was entered, in seconds since 1970; zero if it was not.
    /// @param retiredAt When it was retired; zero if it was not.
    /// @param layerRoot Root of the Merkle tree over the roots of weights.
    struct Entry {
        uint32 numerics;
        uint32 layers;
        uint64 registeredAt;
        uint64 retiredAt;
        bytes32 layerRoot;
    }

    /// @notice EIP-712 type whose struct hash is the model hash.
    bytes32 public constant MODEL_TYPEHASH =
        keccak256("Model(uint32 numerics,bytes32 tokenizer,bytes32 rope,uint32 layers,bytes32 layerRoot)");
    /// @notice Most roots of weights that a model has.
    uint256 public constant MAX_LAYERS = 1024;

    /// @notice What is known of a model.
    mapping(bytes32 model => Entry) public entries;

    /// @notice A model was entered.
    event ModelRegistered(
        bytes32 indexed model,
        uint32 numerics,
        bytes32 tokenizer,
        bytes32 rope,
        bytes32 layerRoot,
        bytes32[] layers,
        string name
    );
    /// @notice No new plans should be made with a model.
    event ModelRetired(bytes32 indexed model);

    /// @notice A model has no layers, or too many.
    error BadLayers(uint256 count);
    /// @notice The model is known already.
    error AlreadyRegistered(bytes32 model);
    /// @notice The model is not known, or retired.
    error NotActive(bytes32 model);

    /// @param authority The AccessManager; its curator role may call `register` and `retire`.
    constructor(address authority) AccessManaged(authority) {}

    /// @notice Enters a model. For the curator role.
    /// @param model Its contents.
    /// @param name What people call it; in the event alone.
    /// @return hash The model hash.
    function register(Model calldata model, string calldata name) external restricted returns (bytes32 hash) {
        bytes32 layerRoot = _layerRoot(model.layers);
        uint32 layers = uint32(model.layers.length);
        hash = _hash(model, layers, layerRoot);
        if (entries[hash].registeredAt != 0) revert AlreadyRegistered(hash);
        entries[hash] = Entry(model.numerics, layers, uint64(block.timestamp), 0, layerRoot);
        emit ModelRegistered(hash, model.numerics, model.tokenizer, model.rope, layerRoot, model.layers, name);
    }

    /// @notice Retires a model, for good. For the curator role.
    /// @param model The model hash.
    function retire(bytes32 model) external restricted {
        if (!isActive(model)) revert NotActive(model);
        entries[model].retiredAt = uint64(block.timestamp);
        emit ModelRetired(model);
    }

    /// @notice Whether a model is known and not retired.
    /// @param model The model hash.
    /// @return Whether it is.
    function isActive(bytes32 model) public view returns (bool) {
        Entry storage entry = entries[model];
        return entry.registeredAt != 0 && entry.retiredAt == 0;
    }

    /// @notice Whether a root of weights is a model's. A retired model's are still known.
    /// @param model The model hash.
    /// @param index Which of its roots.
    /// @param weights The root.
    /// @param proof From the root's leaf to the model's `layerRoot`.
    /// @return Whether it is.
    function hasLayer(bytes32 model, uint256 index, bytes32 weights, bytes32[] calldata proof)
        external
        view
        returns (bool)
    {
        Entry storage entry = entries[model];
        if (entry.registeredAt == 0 || index >= entry.layers) return false;
        return MerkleProof.verifyCalldata(proof, entry.layerRoot, Merkle.leaf(abi.encode(index, weights)));
    }

    /// @notice A model's hash.
    /// @param model Its contents.
    /// @return The hash.
    function hashModel(Model calldata model) external pure returns (bytes32) {
        return _hash(model, uint32(model.layers.length), _layerRoot(model.layers));
    }

    function _hash(Model calldata model, uint32 layers, bytes32 layerRoot) private pure returns (bytes32) {
        return
            keccak256(
                abi.encode(MODEL_TYPEHASH, model.numerics, model.tokenizer, model.rope, layers, layerRoot)
            );
    }

    function _layerRoot(bytes32[] calldata layers) private pure returns (bytes32) {
        uint256 count = layers.length;
        if (count == 0 || count > MAX_LAYERS) revert BadLayers(count);
        bytes32[] memory leaves = new bytes32[](count);
        for (uint256 i = 0; i < count; ++i) {
            leaves[i] = Merkle.leaf(abi.encode(i, layers[i]));
        }
        return Merkle.root(leaves);
    }
}
