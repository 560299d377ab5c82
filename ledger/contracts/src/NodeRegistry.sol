// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Nonces} from "@openzeppelin/contracts/utils/Nonces.sol";

/// @title Nodes and their accounts
/// @notice A node is an ed25519 key; its account is an address. The account enters the node here, by its own
/// transaction or by a signature, together with the node key's signature of the account. This machine cannot
/// check ed25519, so entries are kept per account: nobody can take a node's place by entering its key first,
/// and whoever reads an entry checks the node's signature of `bindingDigest`.
///
/// Nothing here is owned or moderated.
contract NodeRegistry is EIP712, Nonces {
    /// @notice The ed25519 signature by which a node names its account.
    /// @param r The first half.
    /// @param s The second half.
    struct Proof {
        bytes32 r;
        bytes32 s;
    }

    /// @notice What an account says of a node of its.
    /// @param roles Bit set of the roles that it offers.
    /// @param updatedAt When it was last entered; zero if it is not entered.
    /// @param metadata Hash of a description that is kept elsewhere.
    /// @param proof By which the node names the account.
    /// @param endpoint Where it is reached, at most 256 bytes.
    struct Node {
        uint32 roles;
        uint64 updatedAt;
        bytes32 metadata;
        Proof proof;
        string endpoint;
    }

    /// @notice EIP-712 type that a node's ed25519 key signs.
    bytes32 public constant BINDING_TYPEHASH = keccak256("NodeBinding(bytes32 node,address account)");
    /// @notice EIP-712 type that an account signs when somebody else sends its entry.
    bytes32 public constant REGISTRATION_TYPEHASH = keccak256(
        "NodeRegistration(address account,bytes32 node,uint32 roles,bytes32 metadata,string endpoint,"
        "uint256 nonce,uint256 deadline)"
    );
    /// @notice Longest endpoint, in bytes.
    uint256 public constant MAX_ENDPOINT = 256;

    mapping(address account => mapping(bytes32 node => Node)) private _nodes;

    /// @notice A node was entered, or its entry changed.
    event NodeRegistered(
        address indexed account,
        bytes32 indexed node,
        uint32 roles,
        bytes32 metadata,
        Proof proof,
        string endpoint
    );
    /// @notice A node was taken out.
    event NodeRemoved(address indexed account, bytes32 indexed node);

    /// @notice Zero is no node.
    error ZeroNode();
    /// @notice The endpoint is too long.
    error EndpointTooLong(uint256 length);
    /// @notice The account's signature is too old.
    error Expired(uint256 deadline);
    /// @notice The account did not sign this entry.
    error BadSignature(address account);
    /// @notice The account has no such node.
    error NotRegistered(address account, bytes32 node);

    /// @notice Binds signatures to this contract and chain.
    constructor() EIP712("Dolphin", "1") {}

    /// @notice Enters a node of the caller's, or changes its entry.
    /// @param node The ed25519 public key.
    /// @param roles Bit set of the roles that it offers.
    /// @param metadata Hash of a description that is kept elsewhere.
    /// @param endpoint Where it is reached.
    /// @param proof The node's signature of `bindingDigest`.
    function register(
        bytes32 node,
        uint32 roles,
        bytes32 metadata,
        string calldata endpoint,
        Proof calldata proof
    ) external {
        _register(msg.sender, node, roles, metadata, endpoint, proof);
    }

    /// @notice Enters a node for an account that signed the entry.
    /// @param account The account.
    /// @param node The ed25519 public key.
    /// @param roles Bit set of the roles that it offers.
    /// @param metadata Hash of a description that is kept elsewhere.
    /// @param endpoint Where it is reached.
    /// @param proof The node's signature of `bindingDigest`.
    /// @param deadline Until when the account's signature is good, in seconds since 1970.
    /// @param signature Of the account (a contract's by ERC-1271), over the entry, its next nonce and the deadline.
    function registerFor(
        address account,
        bytes32 node,
        uint32 roles,
        bytes32 metadata,
        string calldata endpoint,
        Proof calldata proof,
        uint256 deadline,
        bytes calldata signature
    ) external {
        if (block.timestamp > deadline) revert Expired(deadline);
        uint256 nonce = _useNonce(account);
        bytes32 digest = registrationDigest(account, node, roles, metadata, endpoint, nonce, deadline);
        if (!SignatureChecker.isValidSignatureNowCalldata(account, digest, signature)) {
            revert BadSignature(account);
        }
        _register(account, node, roles, metadata, endpoint, proof);
    }

    /// @notice Takes a node of the caller's out. Signatures for entries that were not used yet are void.
    /// @param node The ed25519 public key.
    function remove(bytes32 node) external {
        if (_nodes[msg.sender][node].updatedAt == 0) revert NotRegistered(msg.sender, node);
        delete _nodes[msg.sender][node];
        _useNonce(msg.sender);
        emit NodeRemoved(msg.sender, node);
    }

    /// @notice What an account says of a node.
    /// @param account The account.
    /// @param node The ed25519 public key.
    /// @return The entry; all zero if there is none.
    function nodeOf(address account, bytes32 node) external view returns (Node memory) {
        return _nodes[account][node];
    }

    /// @notice What a node's ed25519 key signs to name its account.
    /// @param node The ed25519 public key.
    /// @param account The account.
    /// @return The EIP-712 digest, the 32 bytes to sign.
    function bindingDigest(bytes32 node, address account) external view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(BINDING_TYPEHASH, node, account)));
    }

    /// @notice What an account signs so that somebody else may send its entry.
    /// @param account The account.
    /// @param node The ed25519 public key.
    /// @param roles Bit set of the roles that it offers.
    /// @param metadata Hash of a description that is kept elsewhere.
    /// @param endpoint Where it is reached.
    /// @param nonce The account's next nonce.
    /// @param deadline Until when it is good, in seconds since 1970.
    /// @return The EIP-712 digest.
    function registrationDigest(
        address account,
        bytes32 node,
        uint32 roles,
        bytes32 metadata,
        string calldata endpoint,
        uint256 nonce,
        uint256 deadline
    ) public view returns (bytes32) {
        return _hashTypedDataV4(
            keccak256(
                abi.encode(
                    REGISTRATION_TYPEHASH,
                    account,
                    node,
                    roles,
                    metadata,
                    keccak256(bytes(endpoint)),
                    nonce,
                    deadline
                )
            )
        );
    }

    function _register(
        address account,
        bytes32 node,
        uint32 roles,
        bytes32 metadata,
        string calldata endpoint,
        Proof calldata proof
    ) private {
        if (node == 0) revert ZeroNode();
        if (bytes(endpoint).length > MAX_ENDPOINT) revert EndpointTooLong(bytes(endpoint).length);
        _nodes[account][node] = Node({
            roles: roles,
            updatedAt: uint64(block.timestamp),
            metadata: metadata,
            proof: proof,
            endpoint: endpoint
        });
        emit NodeRegistered(account, node, roles, metadata, proof, endpoint);
    }
}
