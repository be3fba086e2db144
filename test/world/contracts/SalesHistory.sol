// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Sales as logs alone
/// @dev Emits what ClawCloudVMs emits for a purchase and stores one counter. A development node recomputes its whole state
/// for every block, so a history of thousands of sales takes minutes with the real contract and seconds with this one.
contract SalesHistory {
    uint256 public nextTokenId;

    event Transfer(address indexed from, address indexed to, uint256 indexed tokenId);
    event VMPurchased(
        uint256 indexed tokenId,
        address indexed buyer,
        uint8 tier,
        uint16 durationDays,
        uint256 purchaseDate,
        uint256 totalCost
    );

    function purchaseVM(uint8 tier, uint16 durationDays) external returns (uint256 tokenId) {
        tokenId = nextTokenId++;
        emit Transfer(address(0), msg.sender, tokenId);
        emit VMPurchased(tokenId, msg.sender, tier, durationDays, block.timestamp, 0.50e6 * uint256(durationDays));
    }
}
