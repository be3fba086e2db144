// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title A wallet that is a contract: whatever its keeper signs, it has signed (ERC-1271)
contract SmartWallet is IERC1271 {
    address public immutable keeper;

    constructor(address keeper_) {
        keeper = keeper_;
    }

    modifier onlyKeeper() {
        require(msg.sender == keeper, "SmartWallet: the caller is not the keeper");
        _;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) public view virtual returns (bytes4) {
        (address signer, ECDSA.RecoverError problem,) = ECDSA.tryRecover(hash, signature);
        return problem == ECDSA.RecoverError.NoError && signer == keeper ? this.isValidSignature.selector : bytes4(0xffffffff);
    }
}

/// @title Puts wallets at addresses that are known before (CREATE2), so that one can own a token before it exists (ERC-6492)
contract SmartWalletFactory {
    function addressOf(address keeper) public view returns (address) {
        bytes32 code = keccak256(abi.encodePacked(type(SmartWallet).creationCode, abi.encode(keeper)));
        return address(uint160(uint256(keccak256(abi.encodePacked(bytes1(0xff), address(this), bytes32(0), code)))));
    }

    function deploy(address keeper) external returns (address wallet) {
        wallet = addressOf(keeper);
        if (wallet.code.length == 0) new SmartWallet{salt: 0}(keeper);
    }
}
