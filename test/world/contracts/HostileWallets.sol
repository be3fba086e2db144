// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {SmartWallet} from "./SmartWallet.sol";

/// @title A wallet that agrees to its keeper's signatures until it is told otherwise
/// @dev An account that delegates to it (EIP-7702) has a mind of its own: what it was told is in the account's storage.
contract FickleWallet is SmartWallet {
    bool public refuses;

    constructor(address keeper_) SmartWallet(keeper_) {}

    function setRefuses(bool refuses_) external onlyKeeper {
        refuses = refuses_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) public view override returns (bytes4) {
        return refuses ? bytes4(0xffffffff) : super.isValidSignature(hash, signature);
    }
}

/// @title A wallet that burns gas before it agrees to its keeper's signatures
contract GasBurner is SmartWallet {
    uint256 public burns;
    /// @dev Then dry runs see a cheap wallet: they name no gas price.
    bool public onlyWhenPaid;

    constructor(address keeper_, uint256 burns_) SmartWallet(keeper_) {
        burns = burns_;
    }

    function setBurns(uint256 burns_, bool onlyWhenPaid_) external onlyKeeper {
        burns = burns_;
        onlyWhenPaid = onlyWhenPaid_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) public view override returns (bytes4) {
        uint256 begin = gasleft();
        if (!onlyWhenPaid || tx.gasprice > 0) while (begin - gasleft() < burns) {}
        return super.isValidSignature(hash, signature);
    }
}

interface ITransferable {
    function transferFrom(address from, address to, uint256 tokenId) external;
}

/// @dev Moves a token that it was sent to itself, again and again: each time is a log, for little gas.
contract TokenStorm {
    function blow(ITransferable token, uint256 tokenId, uint256 times) external {
        for (uint256 i = 0; i < times; i++) token.transferFrom(address(this), address(this), tokenId);
    }

    function giveTo(ITransferable token, address to, uint256 tokenId) external {
        token.transferFrom(address(this), to, tokenId);
    }
}
