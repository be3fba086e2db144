// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ERC721} from "@openzeppelin/contracts/token/ERC721/ERC721.sol";

/// @title ClawCloud VMs
/// @notice USDC in, an ERC-721 token out; the token's owner is whoever may log in to the machine behind it.
/// @dev The contract of the local world. It keeps the published interface (purchaseVM, isTokenValid,
/// getTierConfig, VMPurchased); renewals, early termination and a stop of all transfers are options that the owner
/// switches on.
contract ClawCloudVMs is ERC721, Ownable {
    using SafeERC20 for IERC20;

    struct Tier {
        uint256 pricePerDay;
        bool active;
        string name;
    }

    struct Lease {
        uint64 expiresAt;
        uint8 tier;
        bool terminated;
    }

    uint8 public constant TIER_COUNT = 8;

    IERC20 public immutable usdc;
    uint256 public nextTokenId;
    bool public renewEnabled;
    bool public terminateEnabled;
    bool public transfersPaused;
    mapping(uint256 tokenId => Lease) public leases;
    mapping(uint8 tier => Tier) private _tiers;

    event VMPurchased(
        uint256 indexed tokenId,
        address indexed buyer,
        uint8 tier,
        uint16 durationDays,
        uint256 purchaseDate,
        uint256 totalCost
    );
    event VMRenewed(uint256 indexed tokenId, uint16 additionalDays, uint256 newExpiry, uint256 totalCost);
    event VMTerminated(uint256 indexed tokenId);

    error UnknownTier(uint8 tier);
    error TierInactive(uint8 tier);
    error NoDuration();
    error OptionDisabled();
    error TransfersPaused();
    error TokenInvalid(uint256 tokenId);
    error NotTokenOwner(uint256 tokenId, address caller);

    constructor(address owner_, IERC20 usdc_) ERC721("ClawCloud VM", "CLAW") Ownable(owner_) {
        usdc = usdc_;
        _tiers[0] = Tier(0.50e6, true, "VM 1 vCPU / 1 GB");
        _tiers[1] = Tier(0.90e6, true, "VM 1 vCPU / 2 GB");
        _tiers[2] = Tier(1.60e6, true, "VM 2 vCPU / 4 GB");
        _tiers[3] = Tier(3.00e6, true, "VM 4 vCPU / 8 GB");
        _tiers[4] = Tier(18.00e6, true, "GPU RTX 4090");
        _tiers[5] = Tier(36.00e6, true, "GPU A100 40GB");
        _tiers[6] = Tier(48.00e6, true, "GPU A100 80GB");
        _tiers[7] = Tier(84.00e6, true, "GPU H100");
    }

    /// @notice Pays pricePerDay x durationDays in USDC (approve first) and mints the token to the caller.
    function purchaseVM(uint8 tier, uint16 durationDays) external returns (uint256 tokenId) {
        Tier storage config = _tier(tier);
        if (!config.active) revert TierInactive(tier);
        if (durationDays == 0) revert NoDuration();
        uint256 totalCost = config.pricePerDay * durationDays;
        tokenId = nextTokenId++;
        leases[tokenId] = Lease(uint64(block.timestamp + uint256(durationDays) * 1 days), tier, false);
        usdc.safeTransferFrom(msg.sender, address(this), totalCost);
        _mint(msg.sender, tokenId);
        emit VMPurchased(tokenId, msg.sender, tier, durationDays, block.timestamp, totalCost);
    }

    /// @notice Adds days, at today's price, to a token that is still valid.
    function renewVM(uint256 tokenId, uint16 additionalDays) external {
        if (!renewEnabled) revert OptionDisabled();
        if (!isTokenValid(tokenId)) revert TokenInvalid(tokenId);
        if (additionalDays == 0) revert NoDuration();
        Lease storage lease = leases[tokenId];
        uint256 totalCost = _tiers[lease.tier].pricePerDay * additionalDays;
        lease.expiresAt += uint64(uint256(additionalDays) * 1 days);
        usdc.safeTransferFrom(msg.sender, address(this), totalCost);
        emit VMRenewed(tokenId, additionalDays, lease.expiresAt, totalCost);
    }

    /// @notice Gives the machine up before its time; the token stays as a receipt, no longer valid.
    function terminateVM(uint256 tokenId) external {
        if (!terminateEnabled) revert OptionDisabled();
        if (ownerOf(tokenId) != msg.sender) revert NotTokenOwner(tokenId, msg.sender);
        leases[tokenId].terminated = true;
        emit VMTerminated(tokenId);
    }

    /// @notice True while the token exists, was not terminated and its paid time runs.
    function isTokenValid(uint256 tokenId) public view returns (bool) {
        Lease storage lease = leases[tokenId];
        return _ownerOf(tokenId) != address(0) && !lease.terminated && block.timestamp < lease.expiresAt;
    }

    function getTierConfig(uint8 tier) external view returns (uint256 pricePerDay, bool active, string memory name) {
        Tier storage config = _tier(tier);
        return (config.pricePerDay, config.active, config.name);
    }

    function setTier(uint8 tier, uint256 pricePerDay, bool active, string calldata name) external onlyOwner {
        if (tier >= TIER_COUNT) revert UnknownTier(tier);
        _tiers[tier] = Tier(pricePerDay, active, name);
    }

    function setOptions(bool renew, bool terminate) external onlyOwner {
        renewEnabled = renew;
        terminateEnabled = terminate;
    }

    /// @notice While paused, tokens are minted but don't move.
    function setTransfersPaused(bool paused) external onlyOwner {
        transfersPaused = paused;
    }

    /// @notice Moves collected USDC, to the treasury or back to a buyer.
    function withdraw(address to, uint256 amount) external onlyOwner {
        usdc.safeTransfer(to, amount);
    }

    function _update(address to, uint256 tokenId, address auth) internal override returns (address from) {
        from = super._update(to, tokenId, auth);
        if (transfersPaused && from != address(0) && to != address(0)) revert TransfersPaused();
    }

    function _tier(uint8 tier) private view returns (Tier storage) {
        if (tier >= TIER_COUNT) revert UnknownTier(tier);
        return _tiers[tier];
    }
}
