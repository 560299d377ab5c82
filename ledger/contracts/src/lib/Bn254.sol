// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @notice A point of G1; (0, 0) is the point at infinity.
struct G1 {
    uint256 x;
    uint256 y;
}

/// @notice A point of G2, coordinates as EIP-197 has them: the imaginary part first.
struct G2 {
    uint256 x1;
    uint256 x0;
    uint256 y1;
    uint256 y0;
}

/// @title BLS signatures on BN254, with signatures in G1
/// @notice Verification and hashing to the curve (RFC 9380 with expand_message_xmd over Keccak-256 and the map
/// of Shallue and van de Woestijne) by the precompiles 0x05, 0x06 and 0x08. Every point of G1 is in the prime
/// order group, so there is no cofactor to clear.
library Bn254 {
    /// Modulus of the base field.
    uint256 private constant P = 0x30644e72e131a029b85045b68181585d97816a916871ca8d3c208c16d87cfd47;
    /// 2^256 mod P.
    uint256 private constant R = 0x0e0a77c19a07df2f666ea36f7879462c0a78eb28f5c70b3dd35d438dc58f0d9d;
    /// The precompile takes all it is given when it refuses. Two pairs cost 113,000 (EIP-1108).
    uint256 private constant PAIRING_GAS = 300_000;
    /// Exponent of a square root, (P + 1) / 4.
    uint256 private constant ROOT = 0x0c19139cb84c680a6e14116da060561765e05aa45a1c72a34f082305b61f3f52;

    // Constants of the map for y^2 = x^3 + 3 and Z = 1: c1 = g(Z) = 4, c2 = -Z / 2, c3 = the even root of
    // -g(Z) * 3Z^2 = -12, c4 = -4 g(Z) / 3Z^2 = -16 / 3.
    uint256 private constant C1 = 4;
    uint256 private constant C2 = 0x183227397098d014dc2822db40c0ac2ecbc0b548b438e5469e10460b6c3e7ea3;
    uint256 private constant C3 = 0x16789af3a83522eb353c98fc6b36d713d5d8d1cc5dffffffa;
    uint256 private constant C4 = 0x10216f7ba065e00de81ac1e7808072c9dd2b2385cd7b438469602eb24829a9bd;

    /// @notice A precompile refuses its input: a number that is no coordinate, or no point of the group.
    error NotOnCurve();

    /// @notice Whether `signature` is that of `message` under `key`: e(signature, -g2) e(H(message), key) = 1.
    /// @param signature In G1. What is no point of it is no signature.
    /// @param message What was signed.
    /// @param dst Domain separation tag, at most 255 bytes.
    /// @param key The public key, a point of G2.
    /// @return Whether it is.
    function verify(G1 memory signature, bytes32 message, bytes memory dst, G2 memory key)
        internal
        view
        returns (bool)
    {
        G1 memory hash = hashToCurve(message, dst);
        uint256[12] memory pairs = [
            signature.x,
            signature.y,
            // The generator of G2, its y negated.
            0x198e9393920d483a7260bfb731fb5d25f1aa493335a9e71297e485b7aef312c2,
            0x1800deef121f1e76426a00665e5c4479674322d4f75edadd46debd5cd992f6ed,
            0x275dc4a288d1afb3cbb1ac09187524c7db36395df7be3b99e673b13a075a65ec,
            0x1d9befcd05a5323e6da4d435f3b617cdb3af83285c2df711ef39c01571827f9d,
            hash.x,
            hash.y,
            key.x1,
            key.x0,
            key.y1,
            key.y0
        ];
        (bool isPoint, bytes memory out) = address(8).staticcall{gas: PAIRING_GAS}(abi.encode(pairs));
        return isPoint && out.length == 32 && abi.decode(out, (uint256)) == 1;
    }

    /// @notice Whether four numbers are a point of G2, and not the one at infinity.
    /// @param point The numbers.
    /// @return Whether they are.
    function isPoint2(G2 memory point) internal view returns (bool) {
        if (point.x1 == 0 && point.x0 == 0 && point.y1 == 0 && point.y0 == 0) return false;
        uint256[6] memory pair = [uint256(1), 2, point.x1, point.x0, point.y1, point.y0];
        (bool isPoint, bytes memory out) = address(8).staticcall{gas: PAIRING_GAS}(abi.encode(pair));
        return isPoint && out.length == 32;
    }

    /// @notice Hashes to G1: the sum of two mapped field elements.
    /// @param message What to hash.
    /// @param dst Domain separation tag, at most 255 bytes.
    /// @return The point.
    function hashToCurve(bytes32 message, bytes memory dst) internal view returns (G1 memory) {
        (uint256 u0, uint256 u1) = hashToField(message, dst);
        (G1 memory a, G1 memory b) = (mapToCurve(u0), mapToCurve(u1));
        (bool isPoint, bytes memory out) = address(6).staticcall(abi.encode(a.x, a.y, b.x, b.y));
        if (!isPoint) revert NotOnCurve();
        return abi.decode(out, (G1));
    }

    /// @notice Two field elements, from 48 bytes of expand_message_xmd each.
    /// @param message What to hash.
    /// @param dst Domain separation tag, at most 255 bytes.
    /// @return u0 The first.
    /// @return u1 The second.
    function hashToField(bytes32 message, bytes memory dst) internal pure returns (uint256 u0, uint256 u1) {
        bytes memory suffix = abi.encodePacked(dst, uint8(dst.length));
        // A block of zeros, as long as Keccak's rate: 136 bytes.
        bytes32 b0 = keccak256(abi.encodePacked(new bytes(136), message, uint16(96), uint8(0), suffix));
        bytes32 b1 = keccak256(abi.encodePacked(b0, uint8(1), suffix));
        bytes32 b2 = keccak256(abi.encodePacked(b0 ^ b1, uint8(2), suffix));
        bytes32 b3 = keccak256(abi.encodePacked(b0 ^ b2, uint8(3), suffix));
        u0 = addmod(mulmod(uint256(b1), 1 << 128, P), uint256(b2) >> 128, P);
        u1 = addmod(mulmod(uint128(uint256(b2)), R, P), uint256(b3), P);
    }

    /// @notice Maps a field element to the curve (RFC 9380, section 6.6.1).
    /// @param u The element, below the modulus.
    /// @return point A point.
    function mapToCurve(uint256 u) internal view returns (G1 memory point) {
        uint256 t1 = mulmod(mulmod(u, u, P), C1, P);
        uint256 t2 = addmod(1, t1, P);
        t1 = addmod(1, P - t1, P);
        // The inverse of zero is zero here, as in the RFC.
        uint256 t3 = _power(mulmod(t1, t2, P), P - 2);
        uint256 t5 = mulmod(mulmod(mulmod(u, t1, P), t3, P), C3, P);
        bool isSquare;
        point.x = addmod(C2, P - t5, P);
        (isSquare, point.y) = _root(point.x);
        if (!isSquare) {
            point.x = addmod(C2, t5, P);
            (isSquare, point.y) = _root(point.x);
        }
        if (!isSquare) {
            uint256 t = mulmod(mulmod(t2, t2, P), t3, P);
            point.x = addmod(1, mulmod(mulmod(t, t, P), C4, P), P);
            // One of the three always is.
            // slither-disable-next-line unused-return
            (, point.y) = _root(point.x);
        }
        if (u % 2 != point.y % 2) point.y = P - point.y;
    }

    /// A root of x^3 + 3, if it is a square.
    function _root(uint256 x) private view returns (bool isSquare, uint256 y) {
        uint256 square = addmod(mulmod(mulmod(x, x, P), x, P), 3, P);
        y = _power(square, ROOT);
        isSquare = mulmod(y, y, P) == square;
    }

    function _power(uint256 base, uint256 exponent) private view returns (uint256) {
        (bool done, bytes memory out) = address(5).staticcall(abi.encode(32, 32, 32, base, exponent, P));
        if (!done) revert NotOnCurve();
        return abi.decode(out, (uint256));
    }
}
